//! One binary, several roles: `<binary> __role server …` is the server, `<binary> __role workers …` a worker.
//!
//! `cargo run -p loadtest` builds one binary. That it is also the system under test, as processes of their own, spares the
//! user a second command, and makes sure that what is measured was built with what measures.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// The first argument of a binary that is to play a role.
const ROLE: &str = "__role";

/// Plays the role that the arguments ask for, if any. Call it first in `main`.
///
/// # Errors
/// The role's own.
pub async fn play() -> Option<anyhow::Result<()>> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ROLE {
        return None;
    }
    let role = args.next()?;
    let rest: Vec<OsString> = std::iter::once(role.clone()).chain(args).collect();
    match role.to_str()? {
        "server" => Some(server::main_from(rest).await),
        "workers" => Some(workers::main_from(rest).await),
        other => Some(Err(anyhow::anyhow!("there is no role {other:?}"))),
    }
}

/// The command that plays `role` with `binary`, which must call [`play`].
pub fn command(binary: &Path, role: &str) -> Command {
    let mut command = Command::new(binary);
    command.arg(ROLE).arg(role);
    // What the user's shell sets for a system of their own is not for this one.
    for name in ["DATABASE_URL", "REDIS_URL"] {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRIBUTARY_") {
            command.env_remove(name);
        }
    }
    command
}
