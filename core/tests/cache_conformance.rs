//! What every cache must do.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use support::{CacheUnderTest, memory_cache, redis_cache};

on_every_adapter!({ memory: crate::memory_cache, redis: crate::redis_cache } [
    an_answer_is_kept_for_its_time,
    what_is_put_is_in_place_of_what_was_there_and_what_is_removed_is_gone,
    all_of_a_brand_goes_and_nothing_of_another,
]);

const LONG: Duration = Duration::from_secs(60);

async fn an_answer_is_kept_for_its_time(u: &CacheUnderTest) {
    assert_eq!(u.cache.get("1:a").await.unwrap(), None);
    u.cache.put("1:a", Bytes::from_static(b"x"), Duration::from_millis(300)).await.unwrap();
    assert_eq!(u.cache.get("1:a").await.unwrap().unwrap(), "x");
    u.pass(Duration::from_millis(400)).await;
    assert_eq!(u.cache.get("1:a").await.unwrap(), None);
}

async fn what_is_put_is_in_place_of_what_was_there_and_what_is_removed_is_gone(u: &CacheUnderTest) {
    for value in ["first", "second"] {
        u.cache.put("1:a", value.into(), LONG).await.unwrap();
        assert_eq!(u.cache.get("1:a").await.unwrap().unwrap(), value);
    }
    u.cache.put("1:b", "other".into(), LONG).await.unwrap();
    u.cache.remove(&["1:a".into(), "1:nothing".into()]).await.unwrap();
    u.cache.remove(&[]).await.unwrap();
    assert_eq!(u.cache.get("1:a").await.unwrap(), None);
    assert_eq!(u.cache.get("1:b").await.unwrap().unwrap(), "other");
}

async fn all_of_a_brand_goes_and_nothing_of_another(u: &CacheUnderTest) {
    for n in 0..700 {
        u.cache.put(&format!("1:c360:{n}"), Bytes::from_static(b"x"), LONG).await.unwrap();
    }
    u.cache.put("11:c360:1", Bytes::from_static(b"x"), LONG).await.unwrap();
    assert_eq!(u.cache.remove_prefix("1:").await.unwrap(), 700);
    for n in [0, 350, 699] {
        assert_eq!(u.cache.get(&format!("1:c360:{n}")).await.unwrap(), None);
    }
    assert!(u.cache.get("11:c360:1").await.unwrap().is_some(), "another brand's");
}
