//! Reading dead letters: an index by time, and the letters by id.

use redis::Cmd;

use super::super::element;
use super::RedisQueue;
use super::reply::failed;
use crate::ports::queue::{DeadLetter, DeadPlace, MAX_DEAD_PAGE, QueueError, Scope};

impl RedisQueue {
    /// A page of dead letters, newest first.
    pub(super) async fn dead_page(
        &self,
        of: Scope,
        after: Option<&DeadPlace>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        let index = match of {
            Scope::All => self.keys.dead().to_owned(),
            Scope::Brand(brand) => self.keys.dead_of(brand.0),
            Scope::Nobody => self.keys.dead_of(element::brand(None)),
        };
        let limit = limit.clamp(1, MAX_DEAD_PAGE);
        let mut connection = self.redis.shared();
        let mut from: usize = match after {
            None => 0,
            Some(place) => {
                let mut command = Cmd::new();
                let newer = format!("({}", place.buried_ms);
                command.arg("ZCOUNT").arg(&index).arg(newer).arg("+inf");
                command.query_async(&mut connection).await.map_err(failed)?
            }
        };
        let mut letters = Vec::new();
        // More than once where several were buried in one millisecond.
        while letters.len() < limit {
            let mut command = Cmd::new();
            command.arg("ZREVRANGE").arg(&index).arg(from).arg(from + limit - 1).arg("WITHSCORES");
            let mut ids: Vec<(String, f64)> = command.query_async(&mut connection).await.map_err(failed)?;
            if ids.is_empty() {
                break;
            }
            from += ids.len();
            #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
            ids.retain(|(id, at)| {
                after.is_none_or(|place| {
                    *at < place.buried_ms as f64 || (*at <= place.buried_ms as f64 && *id < place.id)
                })
            });
            letters.extend(self.letters(&ids).await?);
        }
        letters.truncate(limit);
        Ok(letters)
    }

    /// Dead letters by id, each with the millisecond it was buried at; those that are gone are left out.
    pub(super) async fn letters(&self, ids: &[(String, f64)]) -> Result<Vec<DeadLetter>, QueueError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = Cmd::new();
        command.arg("HMGET").arg(self.keys.letters()).arg(ids.iter().map(|(id, _)| id).collect::<Vec<_>>());
        let letters: Vec<Option<Vec<u8>>> =
            command.query_async(&mut self.redis.shared()).await.map_err(failed)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "milliseconds since 1970 are whole and far below 2^53"
        )]
        let read = letters.into_iter().zip(ids).filter_map(|(bytes, (_, at))| {
            Some(DeadLetter { item: element::read(&bytes?.into())?, buried_ms: *at as i64 })
        });
        Ok(read.collect())
    }
}
