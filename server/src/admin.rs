//! The admin commands. They work on the stores themselves, so they run beside a running server, on either profile.

use anyhow::{Context as _, bail};
use tributary_core::context::Context;
use tributary_core::domain::ids::BrandId;
use tributary_core::ports::tenants::Tenants;
use tributary_core::services::tenants::new_key;

use crate::cli::{Admin, BrandCommand, KeyCommand, ServeArgs, ShopCommand};

/// Runs a command. Results go to stdout, alone; words go to stderr.
///
/// # Errors
/// When a name is taken or unknown, or the store fails.
pub async fn run(args: &ServeArgs, command: Admin) -> anyhow::Result<()> {
    let context = Context::open(&args.backend()?, args.queue.settings()).await?;
    let tenants = &*context.tenants;
    match command {
        Admin::Brand(BrandCommand::Add { name }) => {
            if name.trim().is_empty() {
                bail!("a brand needs a name");
            }
            let id = tenants.add_brand(name.trim()).await?;
            println!("{id}");
            eprintln!("added the brand {name:?}; next: server admin key add --brand {name:?} --kind write");
        }
        Admin::Key(KeyCommand::Add { brand, kind }) => {
            let brand = brand_named(tenants, &brand).await?;
            println!("{}", new_key(tenants, brand, kind.into()).await?);
        }
        Admin::Shop(ShopCommand::Add { brand, domain, secret }) => {
            let brand = brand_named(tenants, &brand).await?;
            let domain = shop_domain(&domain)?;
            if secret.is_empty() {
                bail!(
                    "the shop's secret is empty: it is the client secret of the app that sends the webhooks"
                );
            }
            tenants.add_shop(&domain, brand, &secret).await?;
            eprintln!("added {domain}; let Shopify post its webhooks to /api/webhooks/shopify, format JSON");
        }
    }
    Ok(())
}

async fn brand_named(tenants: &dyn Tenants, name: &str) -> anyhow::Result<BrandId> {
    let brand = tenants.brand(name.trim()).await?;
    brand.with_context(|| {
        format!("there is no brand named {name:?}; add it with: server admin brand add {name:?}")
    })
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
