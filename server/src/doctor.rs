//! `server doctor`: looks at everything that a server needs, and says what is wrong and how to mend it.

use std::time::Duration;

use anyhow::bail;
use tributary_core::adapters::outbound::OutboundSender;
use tributary_core::context::Context;
use tributary_core::ports::world::World;
use tributary_core::services::automations::preflight;
use tributary_core::services::health::{self, Check, Status};
use tributary_core::services::shops::warn_of_shared_secrets;

use crate::cli::ServeArgs;

/// How long a server at the public address may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How far clocks may be apart before it is said: times are believed five minutes ahead.
const MAX_SKEW: Duration = Duration::from_secs(30);

/// What a look came to.
struct Findings {
    wrong: usize,
}

impl Findings {
    fn ok(&self, what: &str, how: &str) {
        println!("ok    {what}: {how}");
    }

    fn wrong(&mut self, what: &str, why: &str) {
        self.wrong += 1;
        println!("WRONG {what}: {why}");
    }

    fn look(&mut self, what: &str, found: Result<String, String>) {
        match found {
            Ok(how) => self.ok(what, &how),
            Err(why) => self.wrong(what, &why),
        }
    }

    fn check(&mut self, what: &str, check: &Check) {
        let detail = check.detail.clone();
        self.look(
            what,
            if check.status == Status::Ok { Ok("well".to_owned()) } else { Err(detail.unwrap_or_default()) },
        );
    }
}

/// Looks at everything. What the stores' settings lack is logged besides, as at each start.
///
/// # Errors
/// When the stores cannot be opened, or something is wrong.
pub async fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let mut found = Findings { wrong: 0 };
    args.refuse_missing_folder()?;
    let context = Context::open(&args.backend()?, args.queue.settings()).await?;
    found.ok("place", &args.place());
    found.ok(
        "stores",
        if args.embedded {
            "the data folder opens, its tables are up to date, its secrets can be read"
        } else {
            "PostgreSQL and Redis answer, the tables are up to date, the secrets can be read"
        },
    );
    warn_of_shared_secrets(&context).await?;
    let health = health::check(&context, args.queue.alarms()).await;
    for (what, check) in [
        ("store", &health.store),
        ("events queue", &health.queue),
        ("events in time", &health.lag),
        ("dead letters", &health.dead),
        ("outbox", &health.outbox),
        ("automations queue", &health.automations),
        ("cache", &health.cache),
    ] {
        found.check(what, check);
    }
    let brands = context.brand_ports.brands.brands().await?;
    found.look(
        "brands",
        match brands.len() {
            0 => Err("there is none: server admin brand add NAME".to_owned()),
            some => Ok(some.to_string()),
        },
    );
    let abilities = preflight::reported_abilities(&context).await;
    // The embedded profile's cache is in the server's own process.
    if !args.embedded {
        let missing = || "none has reported for a minute: start workers automation".to_owned();
        found.look("automation workers", abilities.map(|_| "there".to_owned()).ok_or_else(missing));
    }
    found.look("clock", clock(&context).await);
    found.look("e-mail", mail(args).await);
    found.look("public address", public(args).await);
    context.close().await;
    if found.wrong > 0 {
        bail!("{} of these lines say what is wrong", found.wrong);
    }
    Ok(())
}

async fn clock(context: &Context) -> Result<String, String> {
    let own = context.world.now_ms();
    let stores = context.store.now_ms().await.map_err(|error| error.to_string())?;
    let apart = Duration::from_millis(own.abs_diff(stores));
    match apart > MAX_SKEW {
        true => Err(format!(
            "this machine's and the store's are {} s apart: let both keep time by NTP",
            apart.as_secs()
        )),
        false => Ok("this machine's and the store's agree".to_owned()),
    }
}

async fn mail(args: &ServeArgs) -> Result<String, String> {
    let Some(url) = args.outbound.smtp_url().map_err(|error| error.to_string())? else {
        return Ok("no SMTP server is set (--smtp-url): automations send no e-mails from here".to_owned());
    };
    // As the processes would refuse it at their start.
    args.outbound.outbound(&World::real()).map_err(|error| error.to_string())?;
    let outbound =
        OutboundSender::new(Some(&url), args.outbound.reach()).map_err(|error| error.to_string())?;
    outbound.greet_mail_server().await.map(|()| "the SMTP server answers".to_owned())
}

async fn public(args: &ServeArgs) -> Result<String, String> {
    let Some(url) = args.outbound.public_url.as_deref().filter(|url| !url.is_empty()) else {
        return Ok("none is set (--public-url): e-mails with links cannot be sent from here".to_owned());
    };
    let client = reqwest::Client::builder().timeout(PATIENCE).build().map_err(|error| error.to_string())?;
    let response = client.get(format!("{}/healthz", url.trim_end_matches('/'))).send().await;
    match response.map(|response| response.status()) {
        Ok(status) if status.is_success() => Ok(format!("{url} leads here")),
        Ok(status) => Err(format!("{url}/healthz answers {status}: the proxy must pass it on")),
        Err(error) => Err(format!("{url} cannot be reached: {}", whole(&error))),
    }
}

/// An error with what caused it: the last of them says most.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
