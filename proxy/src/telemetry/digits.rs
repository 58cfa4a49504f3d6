//! Numbers as text, without the formatting machinery: a record has a score of them, and there is a record per request.

use std::io::Write as _;
use std::net::SocketAddr;

/// `00` to `99`, one after the other.
const PAIRS: [u8; 200] = {
    let mut pairs = [0; 200];
    let mut number = 0;
    while number < 100 {
        pairs[2 * number] = b'0' + (number / 10) as u8;
        pairs[2 * number + 1] = b'0' + (number % 10) as u8;
        number += 1;
    }
    pairs
};

/// Appends `value` in decimal, with zeros before it up to `width` digits.
pub(super) fn decimal(out: &mut Vec<u8>, mut value: u64, width: usize) {
    if value < 10 && width <= 1 {
        return out.push(b'0' + value as u8);
    }
    // As many as u64 has.
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    while value >= 10 {
        first -= 2;
        let pair = 2 * (value % 100) as usize;
        digits[first..first + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
        value /= 100;
    }
    if value > 0 {
        first -= 1;
        digits[first] += value as u8;
    }
    let first = first.min(digits.len() - width.clamp(1, digits.len()));
    out.extend_from_slice(&digits[first..]);
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
        for value in [0, 1, 9, 10, 99, 100, 503, 65_535, 1_000_000_007, u64::MAX] {
            for width in [0, 1, 2, 6] {
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
