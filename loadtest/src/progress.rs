//! Progress bars on stderr; nothing where stderr is no terminal but a line now and then.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `length` of something.
pub(crate) fn bar(what: &str, length: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:<28} {bar:32} {human_pos}/{human_len} {per_sec}  {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length as u64).with_style(style).with_message(what.to_owned());
    if bar.is_hidden() {
        eprintln!("{what} …");
    }
    bar
}
