//! Numbers in text, without the formatting machinery.

#![forbid(unsafe_code)]

/// Appends `number`.
pub(crate) fn push(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    while number >= 100 {
        start -= 2;
        digits[start..start + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
        number /= 100;
    }
    start -= 2;
    digits[start..start + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
    let has_leading_zero = number < 10;
    out.extend_from_slice(&digits[start + usize::from(has_leading_zero)..]);
}

/// The numbers below a hundred, in two digits.
static PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut number = 0;
    while number < pairs.len() {
        pairs[number] = [digit(number as u64 / 10), digit(number as u64)];
        number += 1;
    }
    pairs
};

/// Appends `millis` as seconds: `1.234`.
pub(crate) fn push_seconds(millis: u64, out: &mut Vec<u8>) {
    push(millis / 1000, out);
    let rest = millis % 1000;
    out.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10), digit(rest)]);
}

/// Appends four numbers with dots between them: an IPv4 address.
pub(crate) fn push_dotted(octets: [u8; 4], out: &mut Vec<u8>) {
    let (mut text, mut end) = ([0; 16], 0);
    for octet in octets {
        let (digits, count) = OCTETS[usize::from(octet)];
        text[end..end + 4].copy_from_slice(&digits);
        end += usize::from(count);
    }
    out.extend_from_slice(&text[..end - 1]);
}

/// The digits of each octet and a dot, and how many bytes these are.
static OCTETS: [([u8; 4], u8); 256] = {
    let mut octets = [([0; 4], 0); 256];
    let mut octet = 0u8;
    loop {
        let [hundreds, tens, ones] = [b'0' + octet / 100, b'0' + octet / 10 % 10, b'0' + octet % 10];
        octets[octet as usize] = match octet {
            0..10 => ([ones, b'.', 0, 0], 2),
            10..100 => ([tens, ones, b'.', 0], 3),
            100.. => ([hundreds, tens, ones, b'.'], 4),
        };
        if octet == u8::MAX {
            break octets;
        }
        octet += 1;
    }
};

/// Writes the lowest digits of `number`, as many as `out` holds.
pub(crate) fn fill(mut number: u64, out: &mut [u8]) {
    for place in out.iter_mut().rev() {
        *place = digit(number);
        number /= 10;
    }
}

const fn digit(number: u64) -> u8 {
    b'0' + (number % 10) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (number, plain, seconds) in [
            (0, "0", "0.000"),
            (7, "7", "0.007"),
            (10, "10", "0.010"),
            (1999, "1999", "1.999"),
            (u64::MAX, "18446744073709551615", "18446744073709551.615"),
        ] {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            push(number, &mut a);
            push_seconds(number, &mut b);
            assert_eq!((&a[..], &b[..]), (plain.as_bytes(), seconds.as_bytes()));
        }
        for octets in [[0, 9, 10, 99], [100, 255, 1, 200]] {
            let mut dotted = Vec::new();
            push_dotted(octets, &mut dotted);
            assert_eq!(String::from_utf8(dotted).expect("digits"), std::net::Ipv4Addr::from(octets).to_string());
        }
        let mut places = [0; 3];
        fill(1042, &mut places);
        assert_eq!(&places, b"042");
    }
}
