//! Who receives what automations send: an HTTP server for webhooks, and a mailbox that speaks SMTP. Both are real servers on the
//! loopback, and remember what they were given.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tributary_core::ports::clock::{Clock, SystemClock};

/// A webhook that was received.
#[derive(Clone, Debug)]
pub struct Hook {
    /// The last part of the path.
    pub name: String,
    pub key: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    pub body: Value,
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature` and the text, for [`Hook::is_signed_with`].
    signed: (String, String, String, String),
}

impl Hook {
    /// Whether its signature is that of the Standard Webhooks scheme under `secret`.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let (id, at, signature, text) = &self.signed;
        let key = STANDARD.decode(secret.trim_start_matches("whsec_")).unwrap_or_default();
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(&key) else { return false };
        let made = mac.chain_update(format!("{id}.{at}.{text}").as_bytes()).finalize().into_bytes();
        *signature == format!("v1,{}", STANDARD.encode(made))
    }
}

/// What the HTTP server remembers.
#[derive(Default)]
struct BrandRules {
    hooks: Vec<Hook>,
    /// Keys that were answered 503 once.
    refused: BTreeSet<String>,
}

/// An HTTP server for webhooks. Dropping it ends it.
pub struct Receiver {
    /// `http://127.0.0.1:port`
    pub url: String,
    book: Arc<Mutex<BrandRules>>,
    serving: JoinHandle<()>,
}

impl Receiver {
    /// Starts one that takes everything; where `fails`, it answers every third key 503 before it takes it.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(fails: bool) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let book = Arc::new(Mutex::new(BrandRules::default()));
        let routes = Router::new().route("/{name}", post(take)).with_state((book.clone(), fails));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self { url, book, serving })
    }

    /// What was taken so far, in order.
    pub fn hooks(&self) -> Vec<Hook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).hooks.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take(
    State((book, fails)): State<(Arc<Mutex<BrandRules>>, bool)>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let text = String::from_utf8_lossy(&body).into_owned();
    let key = header("webhook-id");
    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
    let third = key.bytes().map(u32::from).sum::<u32>().is_multiple_of(3);
    if fails && third && book.refused.insert(key.clone()) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    book.hooks.push(Hook {
        name,
        at_ms: now_ms(),
        body: serde_json::from_str(&text).unwrap_or_default(),
        signed: (key.clone(), header("webhook-timestamp"), header("webhook-signature"), text),
        key,
    });
    StatusCode::OK
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    SystemClock.now_ms()
}

/// An e-mail that was received.
#[derive(Clone, Debug)]
pub struct Mail {
    pub to: Vec<String>,
    /// Headers and text, as they came.
    pub text: String,
}

impl Mail {
    pub fn header(&self, name: &str) -> Option<String> {
        let head = self.text.split("\r\n\r\n").next().unwrap_or_default();
        let unfolded = head.replace("\r\n ", " ").replace("\r\n\t", " ");
        unfolded.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    }
}

/// A mailbox that speaks SMTP. Dropping it ends it.
pub struct Mailbox {
    /// `smtp://127.0.0.1:port`
    pub url: String,
    mails: Arc<Mutex<Vec<Mail>>>,
    serving: JoinHandle<()>,
}

impl Mailbox {
    /// Starts one. It refuses whoever's address begins with `nobody`.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("smtp://{}", listener.local_addr()?);
        let mails: Arc<Mutex<Vec<Mail>>> = Arc::default();
        let kept = mails.clone();
        let serving = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let kept = kept.clone();
                tokio::spawn(async move {
                    let _ = converse(socket, kept).await;
                });
            }
        });
        Ok(Self { url, mails, serving })
    }

    /// What was taken so far, in order.
    pub fn mails(&self) -> Vec<Mail> {
        self.mails.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn converse(socket: TcpStream, kept: Arc<Mutex<Vec<Mail>>>) -> std::io::Result<()> {
    let (read, mut write) = socket.into_split();
    let mut lines = BufReader::new(read);
    write.write_all(b"220 mailbox\r\n").await?;
    let mut to = Vec::new();
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let said = line.trim_end();
        let verb = said.split([' ', ':']).next().unwrap_or_default().to_uppercase();
        let answer: &[u8] = match verb.as_str() {
            "EHLO" | "HELO" => b"250-mailbox\r\n250 8BITMIME\r\n",
            "RCPT" if said.contains("<nobody") => b"550 no such mailbox\r\n",
            "RCPT" => {
                let address = said.split(['<', '>']).nth(1).unwrap_or_default();
                to.push(address.to_owned());
                b"250 ok\r\n"
            }
            "DATA" => {
                write.write_all(b"354 go on\r\n").await?;
                let mut text = String::new();
                loop {
                    line.clear();
                    if lines.read_line(&mut line).await? == 0 {
                        return Ok(());
                    }
                    if line == ".\r\n" {
                        break;
                    }
                    text.push_str(line.strip_prefix('.').unwrap_or(&line));
                }
                let mail = Mail { to: std::mem::take(&mut to), text };
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
                b"250 taken\r\n"
            }
            "QUIT" => {
                write.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            _ => b"250 ok\r\n",
        };
        write.write_all(answer).await?;
    }
}
