//! What is tested: a system of its own, on either profile, or a running one.

use std::time::Duration;

use anyhow::{Context, bail};
use backends::redis::Fsync;
use clap::{Args, ValueEnum};
use stack::system::{Access, Options, Profile, System};

/// What to test.
#[derive(Args, Debug)]
pub(crate) struct TargetArgs {
    /// embedded: everything in one process, needs nothing; services: a private Redis and PostgreSQL, server and workers
    #[arg(long, value_enum, default_value_t = Stack::Embedded, global = true)]
    pub(crate) stack: Stack,
    /// Worker processes of --stack services
    #[arg(long, default_value_t = 1, global = true)]
    pub(crate) workers: usize,
    /// When the Redis of --stack services writes to the disk
    #[arg(long, value_enum, default_value_t = FsyncArg::Always, global = true)]
    pub(crate) fsync: FsyncArg,
    /// A running system instead, http://host:port; needs the keys too
    #[arg(long, global = true, requires_all = ["write_key", "secret_key"])]
    pub(crate) target: Option<String>,
    /// The write key of --target
    #[arg(long, global = true)]
    pub(crate) write_key: Option<String>,
    /// The secret key of --target
    #[arg(long, global = true)]
    pub(crate) secret_key: Option<String>,
    /// The shop of --target whose webhooks are sent
    #[arg(long, default_value = stack::system::SHOP_DOMAIN, global = true)]
    pub(crate) shop_domain: String,
    /// The secret of that shop
    #[arg(long, global = true)]
    pub(crate) shop_secret: Option<String>,
}

/// The systems that can be brought up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stack {
    /// One process, one data folder.
    Embedded,
    /// Server and workers on PostgreSQL and Redis.
    Services,
}

/// When Redis writes to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FsyncArg {
    /// Before it answers.
    Always,
    /// Every second.
    Everysec,
}

impl FsyncArg {
    fn name(self) -> &'static str {
        match self {
            Self::Always => Fsync::Always.as_str(),
            Self::Everysec => Fsync::EverySecond.as_str(),
        }
    }
}

/// A system under test.
pub(crate) struct Target {
    /// How to reach it.
    pub(crate) access: Access,
    /// What to call it in reports.
    pub(crate) name: String,
    /// It was brought up for this test, so all that is in it is this test's.
    pub(crate) own: bool,
    system: Option<System>,
    workers: usize,
}

impl Target {
    /// Brings the system up, or takes the running one.
    pub(crate) async fn open(args: &TargetArgs) -> anyhow::Result<Self> {
        if let Some(url) = &args.target {
            let access = running(args, url)?;
            return Ok(Self { access, name: url.clone(), own: false, system: None, workers: 0 });
        }
        Self::bring_up(args, |_| {}).await
    }

    pub(crate) async fn bring_up(
        args: &TargetArgs,
        change: impl FnOnce(&mut Options),
    ) -> anyhow::Result<Self> {
        let (profile, name) = match args.stack {
            Stack::Embedded => (Profile::Embedded, "embedded".to_owned()),
            Stack::Services => (
                Profile::Services,
                format!("services: {} worker process(es), appendfsync {}", args.workers, args.fsync.name()),
            ),
        };
        eprintln!("bringing up: {name}");
        let mut options = Options::new(profile, std::env::current_exe()?);
        options.workers = args.workers;
        options.fsync = match args.fsync {
            FsyncArg::Always => Fsync::Always,
            FsyncArg::Everysec => Fsync::EverySecond,
        };
        change(&mut options);
        let system = System::start(options).await?;
        Ok(Self {
            access: system.access.clone(),
            name,
            own: true,
            system: Some(system),
            workers: args.workers,
        })
    }

    /// The same without workers, where they are processes of their own, and without a limit on the queue.
    pub(crate) async fn open_for_speed(args: &TargetArgs) -> anyhow::Result<Self> {
        let mut target = Self::bring_up(args, |options| {
            options.workers = 0;
            options.server_args = ["--max-depth", "0", "--max-bytes", "0"].map(str::to_owned).to_vec();
        })
        .await?;
        target.workers = args.workers;
        Ok(target)
    }

    /// The system that was brought up.
    pub(crate) fn system(&self) -> anyhow::Result<&System> {
        self.system.as_ref().context("no system was brought up")
    }

    /// Starts the workers (services).
    pub(crate) fn start_workers(&mut self) -> anyhow::Result<()> {
        let workers = self.workers;
        self.system.as_mut().map_or(Ok(()), |system| system.start_workers_up_to(workers))
    }

    /// Ends the workers as an operator would (services).
    pub(crate) fn stop_workers(&mut self) -> anyhow::Result<()> {
        self.system.as_mut().map_or(Ok(()), System::stop_workers)
    }

    /// Takes a system down that was brought up for this test, as an operator would.
    pub(crate) fn close(mut self) -> anyhow::Result<()> {
        self.system.take().map_or(Ok(()), |mut system| system.stop())
    }
}

/// How long the system may take to process what it was sent.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);

fn running(args: &TargetArgs, url: &str) -> anyhow::Result<Access> {
    let Some(shop_secret) = args.shop_secret.clone() else {
        bail!("--target needs --shop-secret: the secret of {}, to sign its webhooks with", args.shop_domain);
    };
    Ok(Access {
        url: url.trim_end_matches('/').to_owned(),
        write_key: args.write_key.clone().context("--write-key is missing")?,
        secret_key: args.secret_key.clone().context("--secret-key is missing")?,
        shop_domain: args.shop_domain.clone(),
        shop_secret,
    })
}
