//! `backends exec -- COMMAND …`: brings Redis and PostgreSQL up, runs the command with `TEST_REDIS_URL` and `TEST_DATABASE_URL`
//! set, takes them down, and ends as the command ended. `ci/test` runs all tests under it, so that they share one of each.

use std::process::{ExitCode, Stdio};

use anyhow::Context;
use backends::services::{Services, TEST_DATABASE_URL, TEST_REDIS_URL};
use clap::Parser;

#[derive(Parser)]
enum Cli {
    /// Runs a command with Redis and PostgreSQL at hand.
    Exec {
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Cli::Exec { command } = Cli::parse();
    let services = Services::start().await?;
    let status = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .env(TEST_REDIS_URL, &services.redis_url)
        .env(TEST_DATABASE_URL, &services.database_url)
        .stdin(Stdio::null())
        .status()
        .await
        .with_context(|| format!("cannot run {}", command[0]))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
