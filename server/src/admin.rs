//! The admin commands. They work on the stores themselves, so they run beside a running server, on either profile.

use anyhow::{Context as _, bail};
use tributary_core::context::Context;
use tributary_core::domain::ids::BrandId;
use tributary_core::domain::scopes::Scopes;
use tributary_core::domain::settings::BrandSettings;
use tributary_core::domain::shopify::{PRIVACY_TOPICS, TOPICS};
use tributary_core::domain::time::{self, Timestamp};
use tributary_core::ports::brands::{BrandPorts, KeyGrant, KeyKind};
use tributary_core::services::brand_cache::{SETTINGS_TTL, sender_problem};
use tributary_core::services::keys::{KeyError, Maker, add_key, expiry, limit_key, revoke_key, rotate_key};
use tributary_core::services::privacy::{Action, entry, note};
use tributary_core::services::shops::add_shop;

use workers::settings::Secret;

use crate::cli::{Admin, BrandCommand, KeyCommand, ServeArgs, ShopCommand};

/// Runs a command. Results go to stdout, alone; words go to stderr.
///
/// # Errors
/// When a name is taken or unknown, or the store fails.
pub async fn run(args: &ServeArgs, command: Admin) -> anyhow::Result<()> {
    // A brand may be added before the first start; all else is about one that is there.
    if !matches!(command, Admin::Brand(BrandCommand::Add { .. })) {
        args.refuse_missing_folder()?;
    }
    let is_new = args.embedded && !args.data.exists();
    let context = Context::open_for_command(&args.backend()?, args.queue.settings()).await?;
    match command {
        Admin::Brand(command) => brands(args, &context, command, is_new).await,
        Admin::Key(command) => keys(args, &context, command).await,
        Admin::Shop(command) => shops(&context, command).await,
    }
}

async fn brands(
    args: &ServeArgs,
    context: &Context,
    command: BrandCommand,
    is_new: bool,
) -> anyhow::Result<()> {
    let brand_ports = &context.brand_ports;
    match command {
        BrandCommand::Add { name } => {
            if name.trim().is_empty() {
                bail!("a brand needs a name");
            }
            let id = brand_ports.brands.add_brand(name.trim()).await?;
            println!("{id}");
            if is_new {
                eprintln!("there was no data folder, so one is made: start the server on the same one");
            }
            eprintln!(
                "added the brand {name:?} ({}); next: server admin key add --brand {name:?} --kind write",
                args.place()
            );
        }
        BrandCommand::List => {
            for (id, name) in brand_ports.brands.brands().await? {
                println!("{id}\t{name}");
            }
        }
        BrandCommand::Settings { name } => {
            let brand = brand_named(brand_ports, &name).await?;
            println!("{}", serde_json::to_string_pretty(&brand_ports.brands.settings(brand).await?)?);
        }
        BrandCommand::Set { name, settings, all } => {
            let brand = brand_named(brand_ports, &name).await?;
            let before =
                if all { BrandSettings::default() } else { brand_ports.brands.settings(brand).await? };
            let changes = serde_json::from_str(&settings).context("the settings are not JSON")?;
            let settings =
                before.patched(changes).context("the settings have an unknown field or a wrong type")?;
            settings.check()?;
            if let Some(wrong) = sender_problem(brand_ports, brand, &settings).await? {
                return Err(wrong.into());
            }
            let action = Action { what: "settings", subject: None, details: settings.in_short() };
            let note = entry(context, brand, ACTOR, action);
            context.brand_cache.set(brand, &settings, Some(&note)).await?;
            eprintln!("set; every process uses it within {} s", SETTINGS_TTL.as_secs());
        }
        BrandCommand::Domains { name, domains, clear } => {
            email_domains(context, &name, &domains, clear).await?
        }
    }
    Ok(())
}

async fn email_domains(context: &Context, name: &str, domains: &[String], clear: bool) -> anyhow::Result<()> {
    let brand_ports = &context.brand_ports;
    let brand = brand_named(brand_ports, name).await?;
    if domains.is_empty() && !clear {
        match brand_ports.brands.email_domains(brand).await? {
            Some(domains) => domains.iter().for_each(|domain| println!("{domain}")),
            None => {
                eprintln!("none are named: e-mails may come from any domain while this is the only brand")
            }
        }
    } else {
        let domains: Vec<String> = domains.iter().map(|text| email_domain(text)).collect::<Result<_, _>>()?;
        let details = serde_json::json!({"domains": domains});
        let note = entry(context, brand, ACTOR, Action { what: "email_domains", subject: None, details });
        let named = (!clear).then_some(&domains[..]);
        brand_ports.brands.set_email_domains(brand, named, Some(&note)).await?;
        eprintln!("set; every process uses it within {} s", SETTINGS_TTL.as_secs());
    }
    Ok(())
}

async fn shops(context: &Context, command: ShopCommand) -> anyhow::Result<()> {
    let brand_ports = &context.brand_ports;
    match command {
        ShopCommand::List { brand } => {
            let brand = brand_named(brand_ports, &brand).await?;
            for shop in brand_ports.shops.shops(brand).await? {
                let state = match (shop.redacted_at, shop.uninstalled_at) {
                    (Some(at), _) => format!("erased at {}", time::format(at)),
                    (None, Some(at)) => format!("uninstalled at {}", time::format(at)),
                    (None, None) => "added".to_owned(),
                };
                println!("{}\t{state}", shop.domain);
            }
        }
        ShopCommand::Add { brand, domain, secret, secret_file, address } => {
            let brand = brand_named(brand_ports, &brand).await?;
            let domain = shop_domain(&domain)?;
            let secret = Secret {
                flag: "--secret",
                variable: "TRIBUTARY_SHOP_SECRET",
                value: secret.as_deref(),
                file: secret_file.as_deref(),
            };
            let secret = secret.read()?.context(
                "the shop's secret is missing: it is the client secret of the app that sends the webhooks. Give it by \
                 --secret-file, TRIBUTARY_SHOP_SECRET, or --secret - (a line of standard input)",
            )?;
            let details = serde_json::json!({"shop": domain});
            note(context, brand, ACTOR, Action { what: "shop_added", subject: None, details }).await?;
            let known = brand_ports.shops.shop(&domain).await?.is_some();
            add_shop(context, &domain, brand, &secret).await?;
            if known {
                eprintln!(
                    "{domain} was there, and has a new secret; the one before stays good until the next."
                );
                return Ok(());
            }
            if !domain.ends_with(".myshopify.com") {
                eprintln!(
                    "Shopify's webhooks name a shop by its domain at myshopify.com, and {domain} is none: if webhooks are refused, add \
                     the shop under that one."
                );
            }
            eprintln!("{}", what_to_configure(&domain, &address));
        }
    }
    Ok(())
}

/// Who did it, for the audit log.
const ACTOR: &str = "command line";

/// What the command line may do: everything.
fn maker() -> Maker<'static> {
    Maker { actor: ACTOR, key: None, may: Scopes::all(), until: None, limit: None }
}

async fn keys(args: &ServeArgs, context: &Context, command: KeyCommand) -> anyhow::Result<()> {
    let brand_ports = &context.brand_ports;
    let what_failed = |error: KeyError| match error {
        KeyError::Unknown(_) => anyhow::anyhow!("{error}; server admin key list shows them"),
        other => other.into(),
    };
    match command {
        KeyCommand::Add { brand, kind, scopes, rate_limit, days } => {
            let brand = brand_named(brand_ports, &brand).await?;
            let kind = KeyKind::from(kind);
            if kind == KeyKind::Write && scopes.is_some() {
                bail!("a write key has no scopes: it sends events, and nothing else");
            }
            let usual = KeyGrant::new(brand, kind);
            let scopes = scopes.unwrap_or(usual.scopes);
            let expires_at = expiry(context.world.now(), kind, days, args.key_days());
            let grant = KeyGrant { scopes, rate_limit, expires_at, ..usual };
            println!("{}", add_key(context, grant, maker()).await.map_err(what_failed)?);
        }
        KeyCommand::List { brand } => {
            let brand = brand_named(brand_ports, &brand).await?;
            for key in brand_ports.keys.keys(brand).await? {
                let at = |at: Option<Timestamp>, never: &str| at.map_or(never.to_owned(), time::format);
                let limit = key.grant.rate_limit.map_or("no limit".to_owned(), |limit| format!("{limit}/s"));
                println!(
                    "{}\t{}\tmade {} by {}\tlast used {}\tends {}\t{limit}\t{}",
                    key.id,
                    key.grant.kind.as_str(),
                    time::format(key.created_at),
                    key.made_by.map_or("the command line".to_owned(), |id| format!("key {id}")),
                    at(key.last_used_at, "never"),
                    at(key.grant.expires_at, "never"),
                    key.grant.scopes,
                );
            }
        }
        KeyCommand::Rotate { brand, id, grace_s } => {
            let brand = brand_named(brand_ports, &brand).await?;
            let grace = std::time::Duration::from_secs(grace_s.into());
            let lives = (grace, args.key_days());
            println!("{}", rotate_key(context, brand, &id, lives, maker()).await.map_err(what_failed)?);
        }
        KeyCommand::Revoke { brand, id, cascade } => {
            let brand = brand_named(brand_ports, &brand).await?;
            let ended = revoke_key(context, brand, &id, cascade, maker()).await.map_err(what_failed)?;
            for id in &ended.also {
                println!("revoked, too: {id}");
            }
            for id in &ended.living {
                println!("made by it, and still living: {id}");
            }
            eprintln!("revoked; servers accept it for at most 5 more seconds");
        }
        KeyCommand::Limit { brand, id, rate_limit } => {
            let brand = brand_named(brand_ports, &brand).await?;
            limit_key(context, brand, &id, rate_limit, maker()).await.map_err(what_failed)?;
        }
    }
    Ok(())
}

/// What to do at Shopify, so that its webhooks come here.
fn what_to_configure(domain: &str, address: &str) -> String {
    let url = format!("{}/api/webhooks/shopify", address.trim_end_matches('/'));
    let topics = TOPICS.map(|topic| format!("  {topic}")).join("\n");
    let privacy = PRIVACY_TOPICS.map(|topic| format!("  {topic}")).join("\n");
    format!(
        "added {domain}. At Shopify, subscribe once to each of these topics, format JSON, to\n\n  {url}\n\n{topics}\n\n\
         and set the same address for the three privacy topics (in the app's settings, not as subscriptions):\n\n{privacy}\n\n\
         For a browser's cart to find its order, send cart_token (and checkout_token) in the properties of its events.\n\
         Orders from before: server import shopify-orders FILE --shop {domain}"
    )
}

/// The brand of a name.
///
/// # Errors
/// When there is none, or the store's own.
pub(crate) async fn brand_named(brand_ports: &BrandPorts, name: &str) -> anyhow::Result<BrandId> {
    let brand = brand_ports.brands.brand(name.trim()).await?;
    brand.with_context(|| {
        format!("there is no brand named {name:?}; add it with: server admin brand add {name:?}")
    })
}

/// A domain of e-mail addresses, lower case.
fn email_domain(text: &str) -> anyhow::Result<String> {
    let domain = text.trim().trim_start_matches('@').to_lowercase();
    let settings = BrandSettings { email_from: Some(format!("a@{domain}")), ..BrandSettings::default() };
    if settings.sender_domain().as_ref() != Some(&domain) {
        bail!("{text:?} is no domain; it looks like shop.example");
    }
    Ok(domain)
}

/// A host name, lower case: people paste addresses.
fn shop_domain(text: &str) -> anyhow::Result<String> {
    let domain = text.trim().trim_start_matches("https://").trim_end_matches('/').to_lowercase();
    let sound = domain.contains('.') && domain.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
    if !sound {
        bail!("{text:?} is no shop domain; it looks like example.myshopify.com");
    }
    Ok(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasted_address_is_taken_and_nonsense_is_not() {
        assert_eq!(shop_domain(" https://My-Shop.myshopify.com/ ").unwrap(), "my-shop.myshopify.com");
        for text in ["", "shop", "a b.com", "shop.com/admin"] {
            assert!(shop_domain(text).is_err(), "{text:?}");
        }
    }
}
