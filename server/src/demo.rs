//! The first start of an empty embedded folder: a brand to try things with.

use tributary_core::context::Context;
use tributary_core::ports::brands::KeyKind;
use tributary_core::services::keys::new_key;
use workers::telemetry::say;

pub const DEMO_BRAND: &str = "demo";

/// Where there is no brand yet, adds one and prints its keys, once, with a first thing to try at `address`. Only where somebody
/// looks (`show`): what is printed elsewhere ends in a log, which keeps it. There it says how to make a brand.
///
/// # Errors
/// The store's own.
pub async fn seed_if_empty(context: &Context, address: &str, show: bool) -> anyhow::Result<()> {
    if !context.brand_ports.brands.brands().await?.is_empty() {
        return Ok(());
    }
    if !show {
        say(
            "There is no brand yet. With the same --embedded and --data: server admin brand add NAME, then server admin key add \
             --brand NAME --kind write, and --kind secret. (--demo makes one here, and prints its keys.)",
        );
        return Ok(());
    }
    let brand = context.brand_ports.brands.add_brand(DEMO_BRAND).await?;
    let write = new_key(&context.brand_ports, &context.world, brand, KeyKind::Write).await?;
    let secret = new_key(&context.brand_ports, &context.world, brand, KeyKind::Secret).await?;
    say(format_args!(
        "Made the brand \"{DEMO_BRAND}\". Its keys, shown only now:\n\
         \n  write key   {write}\n  secret key  {secret}\n\
         \nTry it:\n\
         \n  curl -u {write}: {address}/v1/identify -d '{{\"userId\":\"u1\",\"traits\":{{\"email\":\"ada@example.com\"}}}}'\
         \n  curl -H 'Authorization: Bearer {secret}' {address}/api/customers/by/email/ada@example.com/360\n"
    ));
    Ok(())
}
