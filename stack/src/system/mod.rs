//! A whole Tributary, in real processes, on either profile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::roles;
use backends::guard::Guarded;
use backends::postgres::Postgres;
use backends::proxy::Proxy;
use backends::redis::{Fsync, Redis};
use backends::services::Services;

mod faults;

/// How long a process may take to say that it listens. Debug builds on a busy machine are slow.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The brand that a system is set up with.
const BRAND: &str = "stack";
/// The shop that a system is set up with.
pub const SHOP_DOMAIN: &str = "stack.myshopify.com";
pub const SHOP_SECRET: &str = "stack-shop-secret";

/// What seals its secrets in PostgreSQL (services).
pub const SECRET_KEY: &str = "c3RhY2stc2VjcmV0LWtleS1mb3ItdGVzdHMtb25seSE=";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Embedded,
    /// Server and workers on a private Redis and PostgreSQL.
    Services,
}

/// How a system is set up.
#[derive(Clone, Debug)]
pub struct Options {
    pub profile: Profile,
    /// The binary that plays the roles; it must call [`roles::play`].
    pub binary: PathBuf,
    pub workers: usize,
    /// Automation worker processes (services).
    pub automation_workers: usize,
    /// Further arguments of whatever processes automations: how it reaches the world outside.
    pub outside_args: Vec<String>,
    /// How long a lease lasts.
    pub lease: Duration,
    /// When the private Redis writes to the disk.
    pub fsync: Fsync,
    /// How the queue lies in Redis: `lists` or `streams`.
    pub queue: String,
    /// Workers reach Redis and PostgreSQL by a network that can be cut: [`System::cut_network`] (services).
    pub cuttable: bool,
    /// The server outlives a disk that takes no more: [`System::fill_disk`] (embedded).
    pub fillable: bool,
    /// Further arguments of the server.
    pub server_args: Vec<String>,
    /// `FAILPOINTS` of the first processes of a role (`server`, `workers`); those that come after them have none.
    pub failpoints: Option<(&'static str, String)>,
    /// Those that come after them have them, too.
    pub failpoints_again: bool,
}

impl Options {
    /// A system of that profile, as it would be set up for real.
    pub fn new(profile: Profile, binary: PathBuf) -> Self {
        Self {
            profile,
            binary,
            workers: 1,
            automation_workers: 1,
            outside_args: Vec::new(),
            lease: Duration::from_secs(15),
            fsync: Fsync::Always,
            queue: "lists".into(),
            cuttable: false,
            fillable: false,
            server_args: Vec::new(),
            failpoints: None,
            failpoints_again: false,
        }
    }
}

/// How to reach a system and what may be done there.
#[derive(Clone, Debug)]
pub struct Access {
    pub url: String,
    /// A key that may send events.
    pub write_key: String,
    /// A key that may read customers.
    pub secret_key: String,
    /// The shop whose webhooks are taken.
    pub shop_domain: String,
    /// The secret they are signed with.
    pub shop_secret: String,
}

/// A running system. Dropping it ends all of it.
pub struct System {
    /// How to reach it.
    pub access: Access,
    options: Options,
    server: Option<Guarded>,
    workers: Vec<Guarded>,
    automation_workers: Vec<Guarded>,
    /// The private Redis (services).
    pub redis: Option<Redis>,
    /// The private PostgreSQL (services).
    pub postgres: Option<Postgres>,
    /// Between the workers and Redis, and PostgreSQL.
    network: Option<[Proxy; 2]>,
    database_url: String,
    key_space: String,
    folder: tempfile::TempDir,
    /// Failpoints are for the first processes only.
    armed: bool,
}

impl System {
    /// Starts one.
    ///
    /// # Errors
    /// When a part does not come up, with the end of its log.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tributary-stack-").tempdir()?;
        let mut system = Self {
            access: Access {
                url: String::new(),
                write_key: String::new(),
                secret_key: String::new(),
                shop_domain: SHOP_DOMAIN.into(),
                shop_secret: SHOP_SECRET.into(),
            },
            server: None,
            workers: Vec::new(),
            automation_workers: Vec::new(),
            redis: None,
            postgres: None,
            network: None,
            database_url: String::new(),
            key_space: Services::fresh_key_space(),
            folder,
            options,
            armed: true,
        };
        if system.options.profile == Profile::Services {
            let redis = Redis::start(system.options.fsync).await.context(
                "--stack services starts its own Redis and PostgreSQL: install redis-server and postgresql (ci/setup does)",
            )?;
            let postgres = Postgres::start().await?;
            system.database_url = postgres.url();
            if system.options.cuttable {
                system.network =
                    Some([Proxy::to(redis.address()).await?, Proxy::to(postgres.address()).await?]);
            }
            system.redis = Some(redis);
            system.postgres = Some(postgres);
        }
        system.start_server("127.0.0.1:0")?;
        system.set_up()?;
        system.start_workers()?;
        system.armed = system.options.failpoints_again;
        Ok(system)
    }

    /// The command of a role. `automation` is one of the workers', with failpoints of its own.
    fn command(&self, role: &'static str) -> Command {
        let program = if role == "automation" { "workers" } else { role };
        let mut command = roles::command(&self.options.binary, program);
        command.env("TRIBUTARY_SECRET_KEY", SECRET_KEY);
        match &self.options.failpoints {
            Some((armed, points)) if self.armed && *armed == role => command.env("FAILPOINTS", points),
            _ => command.env_remove("FAILPOINTS"),
        };
        command
    }

    /// How many processes of Tributary have ended by themselves since they were started; they can be started again.
    pub fn count_dead(&mut self) -> usize {
        let running =
            |of: &Self| of.workers.len() + of.automation_workers.len() + usize::from(of.server.is_some());
        let before = running(self);
        self.workers.retain(Guarded::is_running);
        self.automation_workers.retain(Guarded::is_running);
        self.server = self.server.take().filter(Guarded::is_running);
        before - running(self)
    }

    /// Starts the server again, where it was.
    ///
    /// # Errors
    /// When it runs, or does not come up.
    pub fn restart_server(&mut self) -> anyhow::Result<()> {
        let address = self.access.url.trim_start_matches("http://").to_owned();
        self.start_server(&address)
    }

    /// Starts workers until there are as many as the options say (services).
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start_workers(&mut self) -> anyhow::Result<()> {
        self.start_workers_up_to(self.options.workers)
    }

    /// Starts workers until there are `count` (services).
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start_workers_up_to(&mut self, count: usize) -> anyhow::Result<()> {
        while self.options.profile == Profile::Services && self.workers.len() < count {
            let mut command = self.command("workers");
            command.arg("event").args(self.worker_args()?).args(["--monitor-bind", "127.0.0.1:0"]);
            let worker = Guarded::start("workers", &command, &self.folder.path().join("workers.log"))?;
            worker.line_after("monitor on ", START_TIMEOUT)?;
            self.workers.push(worker);
        }
        let automation = self.options.automation_workers;
        while self.options.profile == Profile::Services && self.automation_workers.len() < automation {
            let mut command = self.command("automation");
            command.arg("automation").args(self.worker_args()?).args(["--monitor-bind", "127.0.0.1:0"]);
            command.args(&self.options.outside_args);
            let worker = Guarded::start("automation", &command, &self.folder.path().join("automation.log"))?;
            worker.line_after("monitor on ", START_TIMEOUT)?;
            self.automation_workers.push(worker);
        }
        Ok(())
    }

    /// Ends the oldest worker as an operator would, and waits until it has.
    ///
    /// # Errors
    /// When there is none, or it does not end.
    pub fn stop_worker(&mut self) -> anyhow::Result<()> {
        oldest(&mut self.workers).context("no worker runs")?.stop()
    }

    /// Ends the workers as an operator would, and waits until they have.
    ///
    /// # Errors
    /// When one does not end.
    pub fn stop_workers(&mut self) -> anyhow::Result<()> {
        self.workers.drain(..).chain(self.automation_workers.drain(..)).try_for_each(Guarded::stop)
    }

    /// Ends server and workers as an operator would, and waits until they have.
    ///
    /// # Errors
    /// When one does not end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.stop_workers()?;
        self.server.take().map_or(Ok(()), Guarded::stop)
    }

    /// Whether the server runs, as far as was seen.
    pub fn server_runs(&self) -> bool {
        self.server.is_some()
    }

    /// The server's process id, while it runs.
    pub fn server_pid(&self) -> Option<u32> {
        self.server.as_ref().map(Guarded::pid)
    }

    /// The folder of the logs (and of the data, embedded).
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn start_server(&mut self, bind: &str) -> anyhow::Result<()> {
        if self.server.is_some() {
            bail!("the server runs already");
        }
        let mut command = self.command("server");
        command.args(self.profile_args()).args(["--bind", bind]);
        // A brand of its own, at any speed, unless a drill says otherwise.
        if !self.options.server_args.iter().any(|arg| arg == "--sender-limit") {
            command.args(["--sender-limit", "0"]);
        }
        command.args(&self.options.server_args);
        if self.options.profile == Profile::Embedded {
            command.args(&self.options.outside_args);
        }
        if self.options.fillable {
            command = without_signal(&command);
        }
        let server = Guarded::start("server", &command, &self.folder.path().join("server.log"))?;
        self.access.url = server.line_after("listening on ", START_TIMEOUT)?;
        self.server = Some(server);
        Ok(())
    }

    fn set_up(&mut self) -> anyhow::Result<()> {
        self.admin(&["brand", "add", BRAND])?;
        self.access.write_key = self.admin(&["key", "add", "--brand", BRAND, "--kind", "write"])?;
        self.access.secret_key = self.admin(&["key", "add", "--brand", BRAND, "--kind", "secret"])?;
        self.admin(&["shop", "add", "--brand", BRAND, "--domain", SHOP_DOMAIN, "--secret", SHOP_SECRET])?;
        Ok(())
    }

    /// Runs an admin command beside the running server, as an operator would; answers its standard output.
    ///
    /// # Errors
    /// When the command fails.
    pub fn admin(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = roles::command(&self.options.binary, "server")
            .env("TRIBUTARY_SECRET_KEY", SECRET_KEY)
            .args(self.profile_args())
            .arg("admin")
            .args(args)
            .output()
            .context("cannot run the server's admin command")?;
        if !output.status.success() {
            bail!("server admin {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// The variables by which the programs find this system, as an operator would set them.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        match self.options.profile {
            Profile::Embedded => vec![
                ("TRIBUTARY_EMBEDDED", "true".to_owned()),
                ("TRIBUTARY_DATA", self.folder.path().join("data").display().to_string()),
            ],
            Profile::Services => vec![
                ("DATABASE_URL", self.database_url.clone()),
                ("REDIS_URL", self.redis.as_ref().map(Redis::url).unwrap_or_default()),
                ("TRIBUTARY_KEY_SPACE", self.key_space.clone()),
            ],
        }
    }

    fn profile_args(&self) -> Vec<String> {
        match self.options.profile {
            Profile::Embedded => {
                let data = self.folder.path().join("data").display().to_string();
                let mut args: Vec<String> = vec!["--embedded".into(), "--data".into(), data];
                args.extend(self.lease_args());
                args
            }
            Profile::Services => self.services_args(),
        }
    }

    fn services_args(&self) -> Vec<String> {
        let redis_url = self.redis.as_ref().map(Redis::url).unwrap_or_default();
        self.args_for(&redis_url, &self.database_url)
    }

    /// Workers go by the network that can be cut, where there is one.
    fn worker_args(&self) -> anyhow::Result<Vec<String>> {
        let (Some([to_redis, to_postgres]), Some(redis), Some(postgres)) =
            (&self.network, &self.redis, &self.postgres)
        else {
            return Ok(self.services_args());
        };
        let by = |url: &str, port: u16, proxy: &Proxy| {
            let (from, to) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", proxy.port()));
            let other = url.replace(&from, &to);
            if other == url { bail!("{url} is not at {from}") } else { Ok(other) }
        };
        let redis_url = by(&redis.url(), redis.address().port(), to_redis)?;
        let database_url = by(&self.database_url, postgres.address().port(), to_postgres)?;
        Ok(self.args_for(&redis_url, &database_url))
    }

    fn args_for(&self, redis_url: &str, database_url: &str) -> Vec<String> {
        let pairs = [
            ("--database-url", database_url),
            ("--redis-url", redis_url),
            ("--key-space", &self.key_space),
            ("--queue", &self.options.queue),
        ];
        let mut args: Vec<String> =
            pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()]).collect();
        args.extend(self.lease_args());
        args
    }

    fn lease_args(&self) -> [String; 2] {
        ["--lease-ms".into(), self.options.lease.as_millis().to_string()]
    }
}

/// The same command, in a process that a file at its limit does not end by a signal: a write fails instead, as on a full disk.
fn without_signal(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", r#"trap "" XFSZ; exec "$@""#, "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

fn oldest(workers: &mut Vec<Guarded>) -> Option<Guarded> {
    (!workers.is_empty()).then(|| workers.remove(0))
}
