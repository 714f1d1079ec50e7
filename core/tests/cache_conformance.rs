//! What every cache must do.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use support::{memory_cache, redis_cache};
use tributary_core::ports::cache::{Cache, INVALIDATION_MARK};

on_every_adapter!({ memory: crate::memory_cache, redis: crate::redis_cache } [
    an_answer_is_kept_for_its_time,
    an_old_answer_cannot_be_put_over_an_invalidation,
    a_put_does_not_write_over_an_answer_but_a_replacement_does,
    a_whole_brand_is_invalidated_and_no_other,
]);

type Shared = Arc<dyn Cache>;
const LONG: Duration = Duration::from_secs(60);

async fn an_answer_is_kept_for_its_time(cache: &Shared) {
    assert_eq!(cache.get("1:a").await.unwrap(), None);
    cache.put("1:a", Bytes::from_static(b"x"), Duration::from_millis(300)).await.unwrap();
    assert_eq!(cache.get("1:a").await.unwrap().unwrap(), "x");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(cache.get("1:a").await.unwrap(), None);
}

async fn an_old_answer_cannot_be_put_over_an_invalidation(cache: &Shared) {
    cache.put("1:a", Bytes::from_static(b"old"), LONG).await.unwrap();
    cache.invalidate(&["1:a".into(), "1:b".into()]).await.unwrap();
    assert_eq!(cache.get("1:a").await.unwrap(), None);
    for key in ["1:a", "1:b"] {
        cache.put(key, Bytes::from_static(b"read before the invalidation"), LONG).await.unwrap();
        assert_eq!(cache.get(key).await.unwrap(), None, "{key}");
    }
    tokio::time::sleep(INVALIDATION_MARK + Duration::from_millis(200)).await;
    cache.put("1:a", Bytes::from_static(b"new"), LONG).await.unwrap();
    assert_eq!(cache.get("1:a").await.unwrap().unwrap(), "new");
}

async fn a_put_does_not_write_over_an_answer_but_a_replacement_does(cache: &Shared) {
    cache.put("1:a", Bytes::from_static(b"first"), LONG).await.unwrap();
    cache.put("1:a", Bytes::from_static(b"second"), LONG).await.unwrap();
    assert_eq!(cache.get("1:a").await.unwrap().unwrap(), "first");
    cache.replace("1:a", Bytes::from_static(b"third"), LONG).await.unwrap();
    assert_eq!(cache.get("1:a").await.unwrap().unwrap(), "third");
}

async fn a_whole_brand_is_invalidated_and_no_other(cache: &Shared) {
    for n in 0..700 {
        cache.put(&format!("1:c360:{n}"), Bytes::from_static(b"x"), LONG).await.unwrap();
    }
    cache.put("11:c360:1", Bytes::from_static(b"x"), LONG).await.unwrap();
    assert_eq!(cache.invalidate_prefix("1:").await.unwrap(), 700);
    for n in [0, 350, 699] {
        assert_eq!(cache.get(&format!("1:c360:{n}")).await.unwrap(), None);
    }
    assert!(cache.get("11:c360:1").await.unwrap().is_some(), "another brand's");
}
