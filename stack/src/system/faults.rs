//! What happens to a system that nobody wants: processes that are killed or stand still, a network that is cut, a disk that is full, a
//! Redis that forgets.

use std::process::Command;

use anyhow::{Context, bail};
use tributary_core::context::AUTOMATIONS_QUEUE;

use super::{System, oldest};
use backends::proxy::Proxy;

impl System {
    /// Stops the oldest worker where it stands, as a machine under pressure does: it is not dead, and does nothing.
    ///
    /// # Errors
    /// When there is none.
    pub fn freeze_worker(&self) -> anyhow::Result<()> {
        self.workers.first().context("no worker runs")?.signal("STOP")
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When there is none.
    pub fn thaw_worker(&self) -> anyhow::Result<()> {
        self.workers.first().context("no worker runs")?.signal("CONT")
    }

    /// Cuts the workers off from Redis and PostgreSQL, until the network is mended.
    ///
    /// # Errors
    /// When the system was set up without such a network.
    pub fn cut_network(&self) -> anyhow::Result<()> {
        self.network.as_ref().context("no network that can be cut")?.iter().for_each(Proxy::close);
        Ok(())
    }

    /// Lets the workers reach Redis and PostgreSQL again.
    ///
    /// # Errors
    /// When the system was set up without such a network.
    pub fn mend_network(&self) -> anyhow::Result<()> {
        self.network.as_ref().context("no network that can be cut")?.iter().for_each(Proxy::open);
        Ok(())
    }

    /// Lets the embedded server write nothing beyond the first page of any file, as on a full disk; or anything again.
    ///
    /// # Errors
    /// When the server does not run, or this machine has no `prlimit`.
    pub fn fill_disk(&self, full: bool) -> anyhow::Result<()> {
        let pid = self.server_pid().context("the server is down")?.to_string();
        let limit = if full { "--fsize=4096:" } else { "--fsize=unlimited:" };
        let output = Command::new("prlimit")
            .args(["--pid", &pid, limit])
            .output()
            .context("this drill needs prlimit (Debian: util-linux)")?;
        if !output.status.success() {
            bail!("prlimit: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Takes all keys of the automations queue out of Redis, as a Redis does whose data was lost.
    ///
    /// # Errors
    /// When Redis does not answer, or there is none.
    pub async fn forget_jobs(&self) -> anyhow::Result<()> {
        let redis = redis::Client::open(self.redis.as_ref().context("no Redis")?.url())?;
        let mut redis = redis.get_multiplexed_async_connection().await?;
        let pattern = format!("*{}*{AUTOMATIONS_QUEUE}*", self.key_space);
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut redis).await?;
        if !keys.is_empty() {
            redis::cmd("UNLINK").arg(keys).exec_async(&mut redis).await?;
        }
        Ok(())
    }

    /// Kills the oldest automation worker as a power cut would.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_automation_worker(&mut self) -> anyhow::Result<()> {
        oldest(&mut self.automation_workers).context("no automation worker runs")?.kill()
    }

    /// Kills the server as a power cut would.
    ///
    /// # Errors
    /// When it is down already.
    pub fn kill_server(&mut self) -> anyhow::Result<()> {
        self.server.take().context("the server is down already")?.kill()
    }

    /// Kills the oldest worker as a power cut would.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_worker(&mut self) -> anyhow::Result<()> {
        oldest(&mut self.workers).context("no worker runs")?.kill()
    }
}
