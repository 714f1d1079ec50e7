//! Taking items into the queue, many requests at a time.
//!
//! A durable write costs a trip to the disk, whether it carries one item or a thousand. So requests that arrive while a
//! write is under way wait for the next one, and share it. Under little load a request is written at once. Large requests go
//! apart: nobody who sends little waits for somebody else's megabytes.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::failpoint;
use crate::ports::queue::{Enqueued, NewItem, Queue, QueueError, within_share};

/// Writes of each size under way at once: while one waits for the disk, the next is being put together.
const WRITERS: usize = 2;
/// Items that end the gathering for one write.
const ITEMS_A_WRITE: usize = 2000;
/// Bytes that end it. While so much goes to the disk, on Redis everybody waits.
const BYTES_A_WRITE: usize = 512 * 1024;
/// A request of so many bytes is written apart from smaller ones.
const LARGE: usize = 64 * 1024;
/// Requests that may wait for a write; further ones wait before they are let in.
const WAITING: usize = 4096;

/// Takes items in. Clones share their writers.
#[derive(Clone)]
pub struct Ingest {
    small: mpsc::Sender<Request>,
    large: mpsc::Sender<Request>,
}

struct Request {
    items: Vec<NewItem>,
    answer: oneshot::Sender<Result<Vec<Enqueued>, QueueError>>,
}

impl Ingest {
    /// Starts the writers. They end when the last clone is dropped.
    pub fn start(queue: Arc<dyn Queue>) -> Self {
        let [small, large] = [(); 2].map(|()| {
            let (requests, waiting) = mpsc::channel(WAITING);
            let waiting = Arc::new(Mutex::new(waiting));
            for _ in 0..WRITERS {
                tokio::spawn(write(queue.clone(), waiting.clone()));
            }
            requests
        });
        Self { small, large }
    }

    /// Takes a brand's items in; durable on return. Where it fails, part of them may have been taken: who sends again sends what has an
    /// id without effect.
    ///
    /// # Errors
    /// The queue's own.
    pub async fn enqueue(&self, items: Vec<NewItem>) -> Result<Vec<Enqueued>, QueueError> {
        let (answer, answered) = oneshot::channel();
        let gone = || QueueError::Unavailable("the server is stopping".into());
        let request = Request { items, answer };
        let requests = if request.bytes() < LARGE { &self.small } else { &self.large };
        requests.send(request).await.map_err(|_| gone())?;
        within_share(answered.await.map_err(|_| gone())??)
    }
}

impl Request {
    fn bytes(&self) -> usize {
        self.items.iter().map(|item| item.payload.len()).sum()
    }
}

async fn write(queue: Arc<dyn Queue>, waiting: Arc<Mutex<mpsc::Receiver<Request>>>) {
    loop {
        // Bound in a statement of its own, so that the other writer may gather while this one writes.
        let gathered = gather(&mut *waiting.lock().await).await;
        let Some(requests) = gathered else { return };
        let counts: Vec<usize> = requests.iter().map(|request| request.items.len()).collect();
        let (items, answers): (Vec<_>, Vec<_>) = requests.into_iter().map(|r| (r.items, r.answer)).unzip();
        let items = items.concat();
        metrics::histogram!("tributary_ingest_write_items").record(items.len() as f64);
        failpoint::reached("before_enqueue");
        let mut outcome = queue.enqueue(&items).await.map(Vec::into_iter);
        failpoint::reached("claimed_before_reply");
        for (answer, count) in answers.into_iter().zip(counts) {
            let share = match &mut outcome {
                Ok(results) => Ok(results.by_ref().take(count).collect()),
                Err(error) => Err(error.clone()),
            };
            // The items of a client that has disconnected are in the queue all the same.
            let _ = answer.send(share);
        }
    }
}

/// The requests that wait now, at least one; `None` when there will be no more.
async fn gather(waiting: &mut mpsc::Receiver<Request>) -> Option<Vec<Request>> {
    let first = waiting.recv().await?;
    let (mut items, mut bytes) = (first.items.len(), first.bytes());
    let mut requests = vec![first];
    while items < ITEMS_A_WRITE && bytes < BYTES_A_WRITE {
        let Ok(next) = waiting.try_recv() else { break };
        items += next.items.len();
        bytes += next.bytes();
        requests.push(next);
    }
    Some(requests)
}
