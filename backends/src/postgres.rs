//! A private PostgreSQL on a free port in a temporary folder, with its durable defaults.

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sqlx::{Connection, PgConnection};

use crate::guard::{Guarded, find_program, free_port};

/// How long it may take to answer after its start, also while it recovers.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Between one attempt to start it, or to reach it, and the next.
const RETRY: Duration = Duration::from_millis(50);
/// Users that PostgreSQL may run as where the tests run as root, which it refuses.
const OTHER_USERS: [&str; 2] = ["postgres", "nobody"];

/// A private PostgreSQL. Dropping it ends it.
pub struct Postgres {
    process: Option<Guarded>,
    folder: tempfile::TempDir,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
}

/// The folder of the server's programs, if this machine has one.
pub fn programs() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for place in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        let found = std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
        folders.extend(found.filter(|p| p.to_string_lossy().contains("postgresql")).map(|p| p.join("bin")));
    }
    // The newest version first.
    folders.sort();
    folders.reverse();
    find_program("initdb", &folders).and_then(|program| program.parent().map(PathBuf::from))
}

impl Postgres {
    /// Starts one.
    ///
    /// # Errors
    /// When there is no PostgreSQL server, or it does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        let programs = programs().context("there is no PostgreSQL server (initdb) on this machine")?;
        let folder = tempfile::Builder::new().prefix("tributary-postgres-").tempdir()?;
        let user = other_user(&folder)?;
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid))?;
        }
        let mut postgres = Self { process: None, folder, programs, user, port: free_port()? };
        postgres.initialise()?;
        postgres.launch().await?;
        Ok(postgres)
    }

    /// `postgres://…`, of the superuser, to a database that is there.
    pub fn url(&self) -> String {
        format!("postgres://tributary@127.0.0.1:{}/postgres", self.port)
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Kills it as a power cut would.
    ///
    /// # Errors
    /// When it is down already.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("PostgreSQL is down already")?.kill()
    }

    /// Starts it again, on the same port, with what its files hold.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.launch().await
    }

    fn initialise(&self) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.join("initdb"));
        command
            .args(["--username", "tributary", "--auth", "trust", "--encoding", "UTF8", "--locale", "C"])
            .args(["--no-instructions", "--pgdata"])
            .arg(self.data());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid).current_dir(self.folder.path());
        }
        let output = command.output().context("cannot run initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.join("postgres"));
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path())
            .args([
                "-p",
                &self.port.to_string(),
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "max_connections=200",
            ])
            .args(["-c", "shared_buffers=256MB", "-c", "max_wal_size=2GB"])
            .current_dir(self.folder.path());
        let log = self.folder.path().join("postgres.log");
        let end = Instant::now() + START_TIMEOUT;
        let mut process = Guarded::start_as("postgres", &command, &log, self.user)?;
        while PgConnection::connect(&self.url()).await.is_err() {
            if Instant::now() > end {
                bail!("PostgreSQL did not come up:\n{}", process.log_end());
            }
            tokio::time::sleep(RETRY).await;
            // It refuses to start while a process of the killed one still holds the shared memory, however long
            // that takes to notice; what supervises a service starts it again.
            if !process.is_running() {
                process = Guarded::start_as("postgres", &command, &log, self.user)?;
            }
        }
        self.process = Some(process);
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

/// Whom PostgreSQL runs as: nobody else, unless this is root.
fn other_user(folder: &tempfile::TempDir) -> anyhow::Result<Option<(u32, u32)>> {
    if folder.path().metadata()?.uid() != 0 {
        return Ok(None);
    }
    for name in OTHER_USERS {
        let id = |flag| -> Option<u32> {
            let output =
                Command::new("id").args([flag, name]).output().ok().filter(|o| o.status.success())?;
            String::from_utf8(output.stdout).ok()?.trim().parse().ok()
        };
        if let (Some(uid), Some(gid)) = (id("-u"), id("-g")) {
            return Ok(Some((uid, gid)));
        }
    }
    bail!("PostgreSQL does not run as root, and there is no user named {}", OTHER_USERS.join(" or "))
}
