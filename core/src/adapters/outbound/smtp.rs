//! E-mail over SMTP, by the crate `lettre`.

use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::Error;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};

use super::{OutboundError, TIMEOUT};
use crate::adapters::in_time;
use crate::domain::addresses::is_own_machine;
use crate::ports::sender::{Email, SendOutcome};

/// How much of a receiver's name stands in a letter, in characters.
const MAX_NAME_CHARS: usize = 100;

pub struct Smtp {
    transport: AsyncSmtpTransport<Tokio1Executor>,
}

impl Smtp {
    /// By the server at `smtp://…` or `smtps://…`.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(url: &str) -> Result<Self, OutboundError> {
        let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(url)
            .map_err(|error| OutboundError::Smtp(error.to_string()))?;
        Ok(Self { transport: builder.timeout(Some(TIMEOUT)).build() })
    }

    /// Connects, signs in, and goes.
    pub(super) async fn greet(&self) -> Result<(), String> {
        match in_time(TIMEOUT, self.transport.test_connection()).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err("the SMTP server does not answer a NOOP".to_owned()),
            Ok(Err(error)) => Err(format!("the SMTP server cannot be reached: {error}")),
            Err(_) => Err(format!("the SMTP server gives no answer in {} s", TIMEOUT.as_secs())),
        }
    }

    /// Sends an e-mail; `key` is in its Message-ID, so that what is sent twice is one to whoever reads it.
    pub(super) async fn send(&self, email: &Email, key: &str) -> SendOutcome {
        let message = match compose(email, key) {
            Ok(message) => message,
            Err(error) => return SendOutcome::Refused(format!("the e-mail cannot be written: {error}")),
        };
        match in_time(TIMEOUT, self.transport.send(message)).await {
            Ok(Ok(response)) => SendOutcome::Done(format!("accepted: {}", response.code())),
            Ok(Err(error)) => failed(&error, &email.to),
            Err(_) => {
                SendOutcome::Later { error: format!("no answer in {} s", TIMEOUT.as_secs()), after: None }
            }
        }
    }
}

/// Refuses a URL by which a password would cross the network in clear text: `smtp://` without `tls=required`, to another machine.
///
/// # Errors
/// [`OutboundError::PlainPassword`], which says what would be right.
pub fn refuse_plain_password(url: &str) -> Result<(), OutboundError> {
    let url = url::Url::parse(url).map_err(|error| OutboundError::Smtp(error.to_string()))?;
    let secure = url.scheme() == "smtps"
        || url
            .query_pairs()
            .any(|(name, value)| name == "tls" && (value == "required" || value == "wrapper"));
    if url.password().is_none() || secure || is_own_machine(&url) {
        return Ok(());
    }
    Err(OutboundError::PlainPassword)
}

/// What went wrong, by its class and codes alone: a server's words may quote the receiver's address, or anything else.
fn failed(error: &Error, to: &str) -> SendOutcome {
    let why = match error.status() {
        Some(code) => match enhanced(&error.to_string()) {
            Some(status) => format!("the mail server answered {code}, {status}"),
            None => format!("the mail server answered {code}"),
        },
        None if error.is_timeout() => format!("no answer in {} s", TIMEOUT.as_secs()),
        None if error.is_response() => "the mail server's answer cannot be understood".to_owned(),
        None if error.is_tls() => "no TLS with the mail server".to_owned(),
        None if error.is_client() => "the mail server does not offer what is needed".to_owned(),
        None => "no connection to the mail server".to_owned(),
    };
    if error.is_permanent() {
        let code = error.status().map(|code| code.to_string()).unwrap_or_default();
        return match is_about_the_address(&code, enhanced(&error.to_string())) {
            true => SendOutcome::Bounced { to: to.to_owned(), error: why },
            false => SendOutcome::Refused(why),
        };
    }
    // With a code, the server has answered: about this letter, not about itself.
    SendOutcome::Later { error: why, after: error.status().map(|_| std::time::Duration::ZERO) }
}

/// Whether a server refuses the receiver's address, and not this letter or whom it is from. RFC 3463: 5.1 is about addresses, of which
/// 5.1.7 and 5.1.8 are the sender's; 5.2.1 is a mailbox that takes nothing. Of RFC 5321's codes 550, 551 and 553 are about a mailbox.
fn is_about_the_address(code: &str, enhanced: Option<&str>) -> bool {
    match enhanced {
        Some(status) => {
            (status.starts_with("5.1.") && !["5.1.7", "5.1.8"].contains(&status)) || status == "5.2.1"
        }
        None => ["550", "551", "553"].contains(&code),
    }
}

/// The enhanced status code (RFC 3463), like `5.1.1`, with which a server's words may begin.
fn enhanced(said: &str) -> Option<&str> {
    let first = said.split_once("): ")?.1.split_whitespace().next()?;
    let mut parts = first.split('.');
    let numbers = parts
        .by_ref()
        .take(3)
        .filter(|part| (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit()));
    (numbers.count() == 3 && parts.next().is_none()).then_some(first)
}

fn compose(email: &Email, key: &str) -> Result<Message, Box<dyn std::error::Error + Send + Sync>> {
    let from: Mailbox = email.from.parse()?;
    // A name is one line of its receiver's own words.
    let name = email
        .name
        .as_deref()
        .map(|name| name.chars().filter(|letter| !letter.is_control()).take(MAX_NAME_CHARS));
    let to = Mailbox::new(name.map(Iterator::collect), email.to.parse()?);
    let id = format!("<{key}@{}>", from.email.domain());
    let domain = from.email.domain().to_owned();
    let mut builder = Message::builder().from(from).to(to).subject(&email.subject).message_id(Some(id));
    // Nobody's holiday is answered to.
    builder = builder.header(AutoSubmitted("auto-generated".to_owned()));
    let mut text = email.text.clone();
    let mut html = email.html.clone();
    if let Some(link) = &email.unsubscribe {
        builder = builder
            .header(ListUnsubscribe(format!("<{link}>")))
            .header(ListUnsubscribePost("List-Unsubscribe=One-Click".to_owned()))
            .header(ListId(format!("<marketing.{domain}>")))
            .header(FeedbackId(format!("{}:marketing:tributary:{domain}", email.campaign)));
        text = format!("{}\n\n--\nUnsubscribe: {link}\n", text.trim_end());
        html = html.map(|html| within(&html, &format!("<p><a href=\"{link}\">Unsubscribe</a></p>\n")));
    }
    let plain = SinglePart::builder().header(ContentType::TEXT_PLAIN).body(text);
    Ok(match html {
        Some(html) => {
            let html = SinglePart::builder().header(ContentType::TEXT_HTML).body(html);
            builder.multipart(MultiPart::alternative().singlepart(plain).singlepart(html))?
        }
        None => builder.singlepart(plain)?,
    })
}

/// HTML with something at its end, before what closes the document.
fn within(html: &str, end: &str) -> String {
    let lower = html.to_ascii_lowercase();
    let at = lower.rfind("</body>").or_else(|| lower.rfind("</html>")).unwrap_or(html.len());
    let (inside, after) = html.split_at(at);
    format!("{}\n{end}{after}", inside.trim_end())
}

macro_rules! header {
    ($name:ident, $text:literal) => {
        #[derive(Clone)]
        struct $name(String);

        impl Header for $name {
            fn name() -> HeaderName {
                HeaderName::new_from_ascii_str($text)
            }

            fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
                Ok(Self(text.to_owned()))
            }

            fn display(&self) -> HeaderValue {
                // Not to be encoded: it is a link of plain characters.
                HeaderValue::dangerous_new_pre_encoded(Self::name(), self.0.clone(), self.0.clone())
            }
        }
    };
}

header!(ListUnsubscribe, "List-Unsubscribe");
header!(ListUnsubscribePost, "List-Unsubscribe-Post");
header!(ListId, "List-Id");
header!(FeedbackId, "Feedback-ID");
header!(AutoSubmitted, "Auto-Submitted");

#[cfg(test)]
mod tests {
    use super::*;

    fn email() -> Email {
        Email {
            from: "Shop <hello@shop.example>".into(),
            to: "ada@example.com".into(),
            name: Some("Ada \"Byron\", Countess".into()),
            campaign: "c1".into(),
            subject: "Grüße".into(),
            text: "Hello".into(),
            html: Some("<p>Hello</p>".into()),
            unsubscribe: Some("https://t.example/unsubscribe/abc".into()),
        }
    }

    #[test]
    fn a_password_goes_to_no_other_machine_in_clear_text() {
        for url in [
            "smtp://u:p@mail.example",
            "smtp://u:p@10.0.0.1:587",
            "smtp://u:p@mail.example?tls=opportunistic",
        ] {
            let refused = refuse_plain_password(url).unwrap_err().to_string();
            assert!(refused.contains("tls=required") && !refused.contains("u:p"), "{refused}");
        }
        for url in [
            "smtps://u:p@mail.example",
            "smtp://u:p@mail.example:587?tls=required",
            "smtp://mail.example",
            "smtp://u:p@127.0.0.1:25",
            "smtp://u:p@localhost",
            "smtp://u:p@[::1]",
        ] {
            refuse_plain_password(url).unwrap();
        }
    }

    #[test]
    fn marketing_can_be_unsubscribed_from_with_one_click() {
        let text = String::from_utf8(compose(&email(), "run-1").unwrap().formatted()).unwrap();
        for part in [
            "List-Unsubscribe: <https://t.example/unsubscribe/abc>",
            "List-Unsubscribe-Post: List-Unsubscribe=One-Click",
            "Message-ID: <run-1@shop.example>",
            "multipart/alternative",
            "List-Id: <marketing.shop.example>",
            "Feedback-ID: c1:marketing:tributary:shop.example",
            "Auto-Submitted: auto-generated",
            "<ada@example.com>",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let whole = "<html><body><p>Hello</p>\n</BODY></html>";
        assert_eq!(within(whole, "X"), "<html><body><p>Hello</p>\nX</BODY></html>");
        assert_eq!(within("<p>Hello</p>", "X"), "<p>Hello</p>\nX");
    }

    #[test]
    fn an_address_that_takes_no_mail_is_told_from_a_letter_that_is_not_taken() {
        for (code, status, bounces) in [
            ("550", None, true),
            ("550", Some("5.1.1"), true),
            ("550", Some("5.2.1"), true),
            ("550", Some("5.7.1"), false),
            ("550", Some("5.1.8"), false),
            ("552", Some("5.2.2"), false),
            ("554", None, false),
        ] {
            assert_eq!(is_about_the_address(code, status), bounces, "{code} {status:?}");
        }
    }

    #[test]
    fn a_servers_status_is_kept_and_its_words_are_not() {
        let said = "permanent error (550): 5.1.1 <ada@example.com>: Recipient address rejected";
        assert_eq!(enhanced(said), Some("5.1.1"));
        for words in ["ada@example.com unknown", "5.1 no", "5.1.1.1 no", "5.x.1 no", "2345.1.1 no", ""] {
            assert_eq!(enhanced(&format!("permanent error (550): {words}")), None, "{words}");
        }
    }

    #[test]
    fn nothing_can_be_smuggled_into_the_headers() {
        let evil = Email { to: "ada@example.com\r\nBcc: all@example.com".into(), ..email() };
        assert!(compose(&evil, "k").is_err());
        let evil = Email { name: Some("Ada\r\nBcc: all@example.com".into()), ..email() };
        let text = String::from_utf8(compose(&evil, "k").unwrap().formatted()).unwrap();
        assert!(!text.lines().any(|line| line.starts_with("Bcc:")), "{text}");
        let evil = Email { subject: "a\r\nBcc: all@example.com".into(), ..email() };
        let text = String::from_utf8(compose(&evil, "k").unwrap().formatted()).unwrap();
        assert!(!text.lines().any(|line| line.starts_with("Bcc:")), "{text}");
    }
}
