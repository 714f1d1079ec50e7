//! A private Redis: append-only file with `appendfsync always`, no eviction, on a free port in a temporary folder.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::guard::{Guarded, find_program, free_port};

/// How long it may take to answer after its start, also while it loads its file.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// When Redis writes its file to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before it answers: a power cut loses nothing that was accepted.
    Always,
    EverySecond,
}

impl Fsync {
    /// The value of `appendfsync`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::EverySecond => "everysec",
        }
    }
}

/// A private Redis. Dropping it ends it.
pub struct Redis {
    process: Option<Guarded>,
    folder: tempfile::TempDir,
    program: PathBuf,
    port: u16,
    fsync: Fsync,
    more: Vec<String>,
}

/// The server's program, if this machine has one.
pub fn program() -> Option<PathBuf> {
    find_program("redis-server", &["/usr/sbin".into(), "/usr/local/bin".into(), "/opt/homebrew/bin".into()])
}

impl Redis {
    /// Starts one.
    ///
    /// # Errors
    /// When there is no `redis-server`, or it does not come up.
    pub async fn start(fsync: Fsync) -> anyhow::Result<Self> {
        Self::start_with(fsync, &[]).await
    }

    /// Starts one with more arguments; they come last, so they win.
    ///
    /// # Errors
    /// When there is no `redis-server`, or it does not come up.
    pub async fn start_with(fsync: Fsync, more: &[&str]) -> anyhow::Result<Self> {
        let more = more.iter().map(|arg| (*arg).to_owned()).collect();
        let program = program().context("there is no redis-server on this machine")?;
        let folder = tempfile::Builder::new().prefix("tributary-redis-").tempdir()?;
        let mut redis = Self { process: None, folder, program, port: free_port()?, fsync, more };
        redis.launch().await?;
        Ok(redis)
    }

    /// `redis://127.0.0.1:port/0`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
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
        self.process.take().context("Redis is down already")?.kill()
    }

    /// Starts it again, on the same port, with what its file holds.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.launch().await
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &self.port.to_string(),
                "--save",
                "",
                "--daemonize",
                "no",
            ])
            .args(["--appendonly", "yes", "--appendfsync", self.fsync.as_str()])
            .args(["--maxmemory-policy", "noeviction", "--logfile", ""])
            .args(&self.more)
            .current_dir(self.folder.path());
        let process = Guarded::start("redis-server", &command, &self.folder.path().join("redis.log"))?;
        let client = redis::Client::open(self.url())?;
        let end = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(mut connection) = client.get_multiplexed_async_connection().await
                && redis::cmd("PING").exec_async(&mut connection).await.is_ok()
            {
                self.process = Some(process);
                return Ok(());
            }
            if Instant::now() > end || !process.is_running() {
                bail!("Redis did not come up:\n{}", process.log_end());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
