//! Numbers as text, without the formatting machinery: a record has a score of them, and there is a record per request.

use std::io::Write as _;
use std::net::SocketAddr;

/// Appends `value` in decimal, with zeros before it up to `width` digits, of which there may be eight.
#[inline(always)]
pub(super) fn decimal(out: &mut Vec<u8>, value: u64, width: usize) {
    if value < 10 && width <= 1 {
        return out.push(b'0' + value as u8);
    }
    digits(out, value, width);
}

fn digits(out: &mut Vec<u8>, value: u64, width: usize) {
    const EIGHT: u64 = 100_000_000;
    if value >= EIGHT {
        digits(out, value / EIGHT, 1);
        return out.extend_from_slice(&(eight((value % EIGHT) as u32) | ZEROS).to_le_bytes());
    }
    let number = eight(value as u32);
    let zeros = (number.trailing_zeros() as usize / 8).min(8 - width.clamp(1, 8));
    let text = (number | ZEROS) >> (8 * zeros);
    // All eight in one move; what is too much of them is cut off.
    let begin = out.len();
    out.extend_from_slice(&text.to_le_bytes());
    out.truncate(begin + 8 - zeros);
}

const ZEROS: u64 = u64::from_ne_bytes([b'0'; 8]);

/// The eight digits of a number below 10⁸ as bytes, the first one lowest: halves, then pairs, then digits of all at once.
fn eight(number: u32) -> u64 {
    let halves = u64::from(number / 10_000) | u64::from(number % 10_000) << 32;
    // x·10486 / 2²⁰ is x / 100 of each half, and x·103 / 2¹⁰ is x / 10 of each pair.
    let hundreds = ((halves * 10_486) >> 20) & 0x7f_0000_007f;
    let pairs = hundreds | (halves - hundreds * 100) << 16;
    let tens = ((pairs * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | (pairs - tens * 10) << 8
}

/// `0.` to `255.` and their lengths.
const OCTETS: [([u8; 4], u8); 256] = {
    let mut octets = [([b'.'; 4], 0); 256];
    let mut octet = 0;
    while octet < 256 {
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let length = if octet < 10 {
            1
        } else if octet < 100 {
            2
        } else {
            3
        };
        let mut at = 0;
        while at < length {
            octets[octet].0[at] = b'0' + digits[3 - length + at] as u8;
            at += 1;
        }
        octets[octet].1 = length as u8 + 1;
        octet += 1;
    }
    octets
};

/// Appends an address and its port.
pub(super) fn address(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(address) => {
            // Four bytes for each in any case: the next one begins where the last has ended.
            let (mut text, mut end) = ([0; 16], 0);
            for octet in address.ip().octets() {
                let (digits, length) = OCTETS[usize::from(octet)];
                if let Some(place) = text.get_mut(end..end + 4) {
                    place.copy_from_slice(&digits);
                }
                end += usize::from(length);
            }
            let begin = out.len();
            out.extend_from_slice(&text);
            out.truncate(begin + end - 1);
            out.push(b':');
            decimal(out, address.port().into(), 1);
        }
        // Writing to a Vec cannot fail.
        SocketAddr::V6(_) => drop(write!(out, "{address}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_that_the_standard_library_writes() {
        let around = (0..20).map(|n| 10_u64.pow(n)).flat_map(|power| [power - 1, power, power + 1]);
        let some = (0..10_000).chain([65_535, 12_345_678, 90_909_090, 1_000_000_007, u64::MAX]);
        for value in around.chain(some) {
            for width in [0, 1, 2, 6, 8] {
                let mut out = Vec::new();
                decimal(&mut out, value, width);
                assert_eq!(String::from_utf8(out).unwrap(), format!("{value:0width$}"));
            }
        }
    }

    #[test]
    fn addresses_are_those_that_the_standard_library_writes() {
        for text in [
            "0.0.0.0:0",
            "127.0.0.1:8080",
            "255.255.255.255:65535",
            "10.9.99.100:7",
            "[::1]:80",
            "[fe80::1%3]:80",
        ] {
            let mut out = Vec::new();
            address(&mut out, text.parse().unwrap());
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
