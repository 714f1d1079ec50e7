//! Secrets at rest: sealed in the store, under a key that is kept elsewhere, on both profiles; and a data folder that is its owner's.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use sha2::{Digest, Sha256};
use support::{ContextUnderTest, embedded_context, services_context};
use tributary_core::context::Context;
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::ports::privacy::Erasure;
use tributary_core::ports::queue::QueueSettings;
use tributary_core::ports::store::BrandIdentifier;
use tributary_core::ports::world::World;
use tributary_core::services::automations::{signing, unsubscribe};
use tributary_core::services::seal::{SecretKey, SecretKeys};

on_every_adapter!({ embedded: crate::support::embedded_context, services: crate::support::services_context } [
    a_dump_shows_no_secret_and_a_restart_reads_them_all,
    secrets_from_before_are_sealed_at_the_start,
    what_is_kept_of_the_erased_cannot_be_tried_and_what_was_kept_before_still_counts,
    a_rotated_signing_secret_signs_beside_the_old_one_until_its_grace_ends,
    whoever_has_the_signing_secret_can_make_no_link_and_links_of_old_stay_valid,
]);

const SHOP: &str = "a.myshopify.com";

async fn a_dump_shows_no_secret_and_a_restart_reads_them_all(u: &ContextUnderTest) {
    let brand_ports = &u.context.brand_ports;
    let brand = brand_ports.brands.add_brand("Acme").await.unwrap();
    for secret in ["shpss_firstsecret", "shpss_secondsecret", "shpss_secondsecret"] {
        brand_ports.shops.add_shop(SHOP, brand, secret).await.unwrap();
    }
    let secrets = signing::secrets(&u.context, brand).await.unwrap();
    let shop = brand_ports.shops.shop(SHOP).await.unwrap().unwrap();
    assert_eq!(
        (shop.secret.as_str(), shop.previous_secret.as_deref()),
        ("shpss_secondsecret", Some("shpss_firstsecret"))
    );
    let dump = u.dump().await;
    assert!(dump.contains("sealed:1:"));
    let signing = secrets.signing.trim_start_matches("whsec_");
    for secret in ["firstsecret", "secondsecret", signing, &secrets.link] {
        assert!(!dump.contains(secret), "{secret} lies plain in the store");
    }
    let other = u.reopened(QueueSettings::default()).await;
    assert!(other.brand_ports.shops.shop(SHOP).await.unwrap().unwrap() == shop);
    assert!(signing::secrets(&other, brand).await.unwrap() == secrets, "every process has the same");
}

async fn secrets_from_before_are_sealed_at_the_start(u: &ContextUnderTest) {
    let brand = u.context.brand_ports.brands.add_brand("Acme").await.unwrap();
    u.context.brand_ports.shops.add_shop(SHOP, brand, "x").await.unwrap();
    u.by_hand("update shops set secret = 'shpss_plainnow', previous_secret = 'shpss_plainbefore'").await;
    u.by_hand(
        "update brands set signing_secret = 'whsec_plainsigning', old_link_secret = 'whsec_plainsigning'",
    )
    .await;
    // Several processes start at once.
    let opened = futures::future::join_all((0..3).map(|_| u.opened())).await;
    for context in opened {
        let context = context.unwrap();
        let shop = context.brand_ports.shops.shop(SHOP).await.unwrap().unwrap();
        assert_eq!(
            (shop.secret.as_str(), shop.previous_secret.as_deref()),
            ("shpss_plainnow", Some("shpss_plainbefore"))
        );
        assert_eq!(signing::secrets(&context, brand).await.unwrap().signing, "whsec_plainsigning");
        context.close().await;
    }
    if u.data().is_some() {
        // What SQLite's log still has is the connection's that is open: at rest there is none.
        u.context.close().await;
    }
    assert!(!u.dump().await.contains("plain"), "nothing of it is left, in free pages and logs either");
}

/// Whether what comes under an identifier is not kept.
async fn is_suppressed(context: &Context, brand: BrandId, identifier: &Identifier) -> bool {
    let mut tx = context.store.begin().await.unwrap();
    !tx.suppressed(&[BrandIdentifier::new(brand, identifier.clone())]).await.unwrap().is_empty()
}

async fn what_is_kept_of_the_erased_cannot_be_tried_and_what_was_kept_before_still_counts(
    u: &ContextUnderTest,
) {
    let brand = u.context.brand_ports.brands.add_brand("Acme").await.unwrap();
    let [erika, frieda] = ["erika@example.com", "frieda@example.com"]
        .map(|address| Identifier::new(IdentifierKind::Email, address).unwrap());
    let erasure = Erasure { identifiers: vec![erika.clone()], suppress: true, ..Erasure::default() };
    u.context.privacy.erase(brand, &erasure, u.context.world.now()).await.unwrap();
    assert!(is_suppressed(&u.context, brand, &erika).await);
    // As a dictionary would be tried, and as an older version kept it.
    let tried =
        |identifier: &Identifier| hex::encode(Sha256::digest(format!("{brand}:email:{}", identifier.value)));
    let dump = u.dump().await.to_lowercase();
    assert!(!dump.contains(&tried(&erika)), "the hash alone tells who it was");
    let (hash, at) = match u.data() {
        Some(_) => (format!("x'{}'", tried(&frieda)), "0"),
        None => (format!("'\\x{}'", tried(&frieda)), "now()"),
    };
    u.by_hand(&format!(
        "insert into suppressed (brand_id, hash, kind, at) values ({}, {hash}, 'email', {at})",
        brand.0
    ))
    .await;
    assert!(!is_suppressed(&u.context, brand, &frieda).await);
    let other = u.reopened(QueueSettings::default()).await;
    for identifier in [&erika, &frieda] {
        assert!(is_suppressed(&other, brand, identifier).await, "{}", identifier.value);
        assert!(!u.dump().await.to_lowercase().contains(&tried(identifier)));
    }
    assert_eq!(other.privacy.unsuppress(brand, &[erika.clone(), frieda]).await.unwrap(), 2);
    assert!(!is_suppressed(&other, brand, &erika).await);
}

async fn a_rotated_signing_secret_signs_beside_the_old_one_until_its_grace_ends(u: &ContextUnderTest) {
    let brand = u.context.brand_ports.brands.add_brand("Acme").await.unwrap();
    let first = signing::secrets(&u.context, brand).await.unwrap();
    let now = u.context.world.now();
    let second = signing::rotate(&u.context, brand, Duration::from_secs(60), "test").await.unwrap();
    assert_ne!(first.signing, second.signing);
    assert_eq!(second.signing_at(now), [second.signing.clone(), first.signing.clone()]);
    assert_eq!(second.signing_at(now + Duration::from_secs(70)), std::slice::from_ref(&second.signing));
    assert_eq!(first.link, second.link);
    let third = signing::rotate(&u.context, brand, Duration::ZERO, "test").await.unwrap();
    assert_eq!(
        third.signing_at(u.context.world.now()),
        std::slice::from_ref(&third.signing),
        "with no grace at once"
    );
    let log = u.context.privacy.audit_log(brand, None, 10).await.unwrap();
    assert_eq!(log.iter().filter(|entry| entry.action == "signing_secret_rotated").count(), 2);
    assert!(log.iter().all(|entry| !entry.details.contains("whsec_")));
}

async fn whoever_has_the_signing_secret_can_make_no_link_and_links_of_old_stay_valid(u: &ContextUnderTest) {
    let brand = u.context.brand_ports.brands.add_brand("Acme").await.unwrap();
    let secrets = signing::secrets(&u.context, brand).await.unwrap();
    let now_ms = u.context.world.now_ms();
    let (customer, newcomer) = (ProfileId::first_at(now_ms - 60_000), ProfileId::first_at(now_ms));
    let token = |secret: &str, profile| {
        let link = unsubscribe::link("https://t.example", secret, brand, profile);
        link.strip_prefix("https://t.example/unsubscribe/").unwrap().to_owned()
    };
    let valid = async |context, token: String| unsubscribe::whose(context, &token).await.is_ok();
    assert!(valid(&u.context, token(&secrets.link, customer)).await);
    assert!(!valid(&u.context, token(&secrets.signing, customer)).await, "made with the signing secret");
    // As a store that was there before links had a secret of their own.
    let minute_ago = now_ms - 30_000;
    let until = match u.data() {
        Some(_) => minute_ago.to_string(),
        None => format!("to_timestamp({minute_ago} / 1000.0)"),
    };
    u.by_hand(&format!("update brands set old_link_secret = 'whsec_old', old_link_until = {until}")).await;
    let later = u.opened().await.unwrap();
    assert!(valid(&later, token("whsec_old", customer)).await, "sent before");
    assert!(!valid(&later, token("whsec_old", newcomer)).await, "nobody had a link then who was not there");
    assert!(valid(&later, token(&secrets.link, newcomer)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_is_refused_in_words_and_the_old_one_beside_a_new_one_opens_and_seals_again() {
    let u = services_context().await;
    let brand = u.context.brand_ports.brands.add_brand("Acme").await.unwrap();
    let first = SecretKey::random(&World::real());
    // A store without a secret takes any key; the system's own was made at the first start.
    u.by_hand("delete from system_secrets").await;
    let context = u.with_keys(&SecretKeys::new(first.clone(), Vec::new())).await.unwrap();
    context.brand_ports.shops.add_shop(SHOP, brand, "shpss_one").await.unwrap();
    let second = SecretKey::random(&World::real());
    let refused = u.with_keys(&SecretKeys::new(second.clone(), Vec::new())).await.err().unwrap().to_string();
    assert!(refused.contains(&first.id()) && refused.contains("TRIBUTARY_SECRET_KEY"), "{refused}");
    let both = SecretKeys::new(second.clone(), vec![first]);
    let context = u.with_keys(&both).await.unwrap();
    assert_eq!(context.brand_ports.shops.shop(SHOP).await.unwrap().unwrap().secret, "shpss_one");
    // From then on the old key is not needed.
    let context = u.with_keys(&SecretKeys::new(second, Vec::new())).await.unwrap();
    assert_eq!(context.brand_ports.shops.shop(SHOP).await.unwrap().unwrap().secret, "shpss_one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_without_its_key_does_not_start_and_its_key_file_rotates() {
    let u = embedded_context().await;
    let brand = u.context.brand_ports.brands.add_brand("Acme").await.unwrap();
    u.context.brand_ports.shops.add_shop(SHOP, brand, "shpss_one").await.unwrap();
    let file = u.data().unwrap().join("secret.key");
    let old = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let refused = u.opened().await.err().unwrap().to_string();
    assert!(refused.contains("secret.key") && refused.contains("backup"), "{refused}");
    assert!(!file.exists(), "and makes no new one");
    std::fs::write(&file, "rubbish").unwrap();
    let refused = u.opened().await.err().unwrap().to_string();
    assert!(refused.contains("head -c 32"), "{refused}");
    let new = SecretKey::random(&World::real()).to_base64();
    std::fs::write(&file, format!("{new}\n{old}")).unwrap();
    u.opened().await.unwrap();
    std::fs::write(&file, new).unwrap();
    let context = u.opened().await.unwrap();
    assert_eq!(context.brand_ports.shops.shop(SHOP).await.unwrap().unwrap().secret, "shpss_one");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_its_owner_looks_into_a_data_folder_also_one_that_stood_open() {
    use std::os::unix::fs::PermissionsExt;

    let u = embedded_context().await;
    let data = u.data().unwrap();
    let modes = || {
        let entries = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let files: Vec<_> = entries.map(|path| (path.display().to_string(), mode(&path))).collect();
        (mode(data), files)
    };
    let closed = |(folder, files): (u32, Vec<(String, u32)>)| {
        assert_eq!(folder, 0o700);
        assert!(files.len() >= 4, "{files:?}");
        assert!(files.iter().all(|(_, mode)| *mode == 0o600), "{files:?}");
    };
    u.context.brand_ports.brands.add_brand("Acme").await.unwrap();
    closed(modes());
    for entry in std::fs::read_dir(data).unwrap() {
        std::fs::set_permissions(entry.unwrap().path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o755)).unwrap();
    u.opened().await.unwrap();
    closed(modes());
}
