//! Telephone numbers: their one form, E.164, by the metadata of Google's libphonenumber.
//!
//! A number that is written with its country code is read by the rules of that country, whatever country its owner lives in, and as
//! it stands before any digit of it is taken for a prefix. What is left over, of how people write and dial at home, the crate
//! `phonenumber` reads.

use phonenumber::country;
use phonenumber::metadata::DATABASE;
use phonenumber::{Metadata, Mode, Type};

/// The longest country code, in digits.
const MAX_CODE_DIGITS: usize = 3;

/// What a valid number may be.
const KINDS: [Type; 10] = [
    Type::Mobile,
    Type::FixedLine,
    Type::TollFree,
    Type::PremiumRate,
    Type::SharedCost,
    Type::PersonalNumber,
    Type::Voip,
    Type::Pager,
    Type::Uan,
    Type::Voicemail,
];

/// The first of ten digits in scripts that people write numbers in, beside ASCII's.
const ZEROS: [char; 21] = [
    '\u{660}', '\u{6f0}', '\u{7c0}', '\u{966}', '\u{9e6}', '\u{a66}', '\u{ae6}', '\u{b66}', '\u{be6}',
    '\u{c66}', '\u{ce6}', '\u{d66}', '\u{e50}', '\u{ed0}', '\u{f20}', '\u{1040}', '\u{17e0}', '\u{1810}',
    '\u{a8d0}', '\u{abf0}', '\u{ff10}',
];

/// The number in E.164. `country` is where numbers without a country code belong; without one they are nobody's: two countries'
/// customers could share it. So is a number with an extension: a company's line is shared.
pub fn e164(raw: &str, country: Option<country::Id>) -> Option<String> {
    let text: String = raw.chars().filter(|c| !is_invisible(*c)).map(plain).collect();
    let text = text.trim();
    let text = text.strip_prefix("tel:").unwrap_or(text);
    if let Some(number) = text.strip_prefix('+').or_else(|| text.strip_prefix("00")) {
        return match digits(number) {
            Some(number) => with_code(&number).or_else(|| by_crate(&format!("+{number}"), None)),
            None => by_crate(text, None),
        };
    }
    let home = country.and_then(|country| DATABASE.by_id(country.as_ref()));
    let at_home = digits(text).zip(home).filter(|(number, home)| is_valid(home, number));
    let has_prefix = at_home.as_ref().is_some_and(|(number, home)| {
        home.national_prefix().is_some_and(|prefix| number.starts_with(prefix))
    });
    let as_it_stands = at_home.map(|(number, home)| format!("+{}{number}", home.country_code()));
    // Before anything is taken off that may be a prefix: a number may begin like its country's own code.
    match as_it_stands {
        Some(number) if !has_prefix => Some(number),
        other => by_crate(text, country).or(other),
    }
}

/// A number of a country code and what follows it: as it stands, else without the prefix that is dialled at home only.
fn with_code(number: &str) -> Option<String> {
    (1..=MAX_CODE_DIGITS).find_map(|length| {
        let (code, national) = number.split_at_checked(length)?;
        let countries = DATABASE.by_code(&code.parse::<u16>().ok()?)?;
        let valid = |national: &str| countries.iter().any(|country| is_valid(country, national));
        let without_prefix = || {
            let prefixes = countries.iter().filter_map(|country| country.national_prefix());
            prefixes.filter_map(|prefix| national.strip_prefix(prefix)).find(|national| valid(national))
        };
        let national = if valid(national) { national } else { without_prefix()? };
        Some(format!("+{code}{national}"))
    })
}

fn is_valid(country: &Metadata, national: &str) -> bool {
    let all = country.descriptors();
    all.general().is_match(national)
        && KINDS.into_iter().any(|kind| all.get(kind).is_some_and(|one| one.is_match(national)))
}

fn by_crate(text: &str, country: Option<country::Id>) -> Option<String> {
    let number = phonenumber::parse(country, text).ok()?;
    let sound = phonenumber::is_valid(&number) && number.extension().is_none();
    sound.then(|| number.format().mode(Mode::E164).to_string())
}

/// The digits of a text that has nothing else but what people put between them.
fn digits(text: &str) -> Option<String> {
    let mut digits = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '0'..='9' => digits.push(c),
            ' ' | '\u{a0}' | '-' | '\u{2010}'..='\u{2015}' | '\u{2212}' | '.' | '/' | '(' | ')' | '~' => {}
            c if c.is_whitespace() => {}
            _ => return None,
        }
    }
    (!digits.is_empty()).then_some(digits)
}

/// Marks without a shape of their own, which come along when a number is copied.
pub(super) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}' | '\u{feff}')
}

/// A digit or a plus sign of any script as ASCII's.
fn plain(c: char) -> char {
    let digit = || ZEROS.iter().find_map(|zero| char::from_digit((c as u32).checked_sub(*zero as u32)?, 10));
    match c {
        '\u{ff0b}' => '+',
        c if c.is_ascii() => c,
        c => digit().unwrap_or(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::identity::country_of;

    /// Every example number of libphonenumber's metadata, with its country and its digits at home.
    fn examples() -> Vec<(country::Id, u16, String)> {
        let mut all = Vec::new();
        for metadata in DATABASE.iter() {
            let Some(country) = country_of(metadata.id()) else { continue };
            for kind in KINDS {
                let example = metadata.descriptors().get(kind).and_then(|one| one.example());
                all.extend(example.map(|digits| (country, metadata.country_code(), digits.to_owned())));
            }
        }
        all
    }

    #[test]
    fn a_number_with_its_country_code_is_itself_whatever_country_its_owner_lives_in() {
        let examples = examples();
        assert!(examples.len() > 900, "{}", examples.len());
        let countries: Vec<country::Id> = DATABASE.iter().filter_map(|one| country_of(one.id())).collect();
        assert!(countries.len() > 200);
        for (country, code, national) in &examples {
            let wanted = Some(format!("+{code}{national}"));
            assert_eq!(e164(&format!("+{code}{national}"), None), wanted, "{country:?}");
            assert_eq!(e164(&format!("00{code} {national}"), None), wanted, "{country:?}");
        }
        // All of each country's numbers in each other country would be a quarter of a million: one by one, in turn.
        for (at, (country, code, national)) in examples.iter().enumerate() {
            for lives_in in countries.iter().skip(at % 7).step_by(7) {
                let wanted = Some(format!("+{code}{national}"));
                assert_eq!(
                    e164(&format!("+{code}{national}"), Some(*lives_in)),
                    wanted,
                    "{country:?} in {lives_in:?}"
                );
            }
        }
    }

    #[test]
    fn a_number_as_it_is_written_at_home_is_itself_or_nobodys() {
        let (mut read, mut all) = (0, 0);
        for (country, code, national) in examples() {
            let metadata = DATABASE.by_id(country.as_ref()).unwrap();
            for prefix in [Some(""), metadata.national_prefix()].into_iter().flatten() {
                let found = e164(&format!("{prefix}{national}"), Some(country));
                let wanted = format!("+{code}{national}");
                assert!(
                    found.is_none() || found.as_ref() == Some(&wanted),
                    "{country:?} {prefix}-{national}: {found:?}"
                );
                all += 1;
                read += u32::from(found.is_some());
            }
        }
        assert!(read * 100 > all * 97, "{read} of {all}");
    }

    #[test]
    fn numbers_are_read_however_people_write_them() {
        for (raw, country, wanted) in [
            ("+49 1512 3456789", Some("US"), Some("+4915123456789")),
            ("+82 10-2000-0000", Some("US"), Some("+821020000000")),
            ("+7 812 000-12-34", Some("RU"), Some("+78120001234")),
            ("+375 800 11 11 11", Some("BY"), Some("+375800111111")),
            ("9123456789", Some("IN"), Some("+919123456789")),
            ("919123456789", Some("IN"), Some("+919123456789")),
            ("\u{ff0b}\u{ff14}\u{ff14} \u{ff12}\u{ff10} 7946 0125", None, Some("+442079460125")),
            ("\u{202a}+44 20 7946 0123\u{202c}", None, Some("+442079460123")),
            ("+44 (0)20 7946 0958", None, Some("+442079460958")),
            ("+88001712345678", Some("BD"), Some("+8801712345678")),
            ("0171 3920001", Some("DE"), Some("+491713920001")),
            ("0171 3920001", None, None),
            ("+39 06 698 12345", None, Some("+390669812345")),
            ("+52 1 55 1234 5678", None, None),
            ("+1 212 555 0123 ext. 7", None, None),
            ("tel:+49-1512-3456789", Some("US"), Some("+4915123456789")),
            ("+49 1512 3456789 x", Some("US"), None),
            ("call me", Some("DE"), None),
        ] {
            assert_eq!(e164(raw, country.and_then(country_of)).as_deref(), wanted, "{raw:?} {country:?}");
        }
    }
}
