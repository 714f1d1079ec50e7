//! Amounts of money: exact decimals with a currency, never floats.

use std::collections::BTreeMap;

use rust_decimal::Decimal;

/// Exact amounts by ISO 4217 currency code, in code order.
pub type Amounts = BTreeMap<String, Decimal>;

/// How many digits after the point a currency is written with (ISO 4217); two for a code that is not listed here.
pub fn minor_digits(currency: &str) -> u32 {
    match currency {
        "BIF" | "CLP" | "DJF" | "GNF" | "ISK" | "JPY" | "KMF" | "KRW" | "PYG" | "RWF" | "UGX" | "VND"
        | "VUV" | "XAF" | "XOF" | "XPF" => 0,
        "BHD" | "IQD" | "JOD" | "KWD" | "LYD" | "OMR" | "TND" => 3,
        _ => 2,
    }
}

/// The largest amount of one order: beyond any real one, and small enough that no sum of them overflows.
pub const MAX_AMOUNT: Decimal = Decimal::from_parts(0xA4C6_8000, 0x0003_8D7E, 0, false, 0);
/// The most digits after the point.
pub const MAX_SCALE: u32 = 8;

/// Reads a decimal string as Shopify writes amounts; `None` when it is none, or beyond [`MAX_AMOUNT`] or [`MAX_SCALE`].
pub fn parse(text: &str) -> Option<Decimal> {
    let text = text.trim();
    let amount = text.parse().or_else(|_| Decimal::from_scientific(text)).ok()?;
    (amount.abs() <= MAX_AMOUNT && amount.normalize().scale() <= MAX_SCALE).then_some(amount)
}

/// An amount with at least its currency's digits: `6552.7` USD is `"6552.70"`. Never rounds.
pub fn format(amount: Decimal, currency: &str) -> String {
    let mut amount = amount.normalize();
    if amount.scale() < minor_digits(currency) {
        amount.rescale(minor_digits(currency));
    }
    amount.to_string()
}

/// `total / count`, rounded half to even at the currency's digits; zero for a count of zero.
pub fn average(total: Decimal, count: u64, currency: &str) -> Decimal {
    if count == 0 {
        return Decimal::ZERO;
    }
    (total / Decimal::from(count)).round_dp(minor_digits(currency))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_with_their_currencys_digits_and_never_rounded() {
        let cases = [
            ("6552.7", "USD", "6552.70"),
            ("100", "JPY", "100"),
            ("100.00", "JPY", "100"),
            ("1.5", "KWD", "1.500"),
            ("0.125", "USD", "0.125"),
            ("0", "EUR", "0.00"),
        ];
        for (text, currency, written) in cases {
            assert_eq!(format(parse(text).unwrap(), currency), written);
        }
    }

    #[test]
    fn an_amount_beyond_reason_is_none() {
        assert_eq!(MAX_AMOUNT.to_string(), "1000000000000000");
        for text in ["70000000000000000000000000000", "1e16", "-1e16", "0.000000001", "ten", ""] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_average_is_rounded_half_to_even() {
        assert_eq!(average(parse("0.25").unwrap(), 2, "USD"), parse("0.12").unwrap());
        assert_eq!(average(parse("10").unwrap(), 0, "USD"), Decimal::ZERO);
    }
}
