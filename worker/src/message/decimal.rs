//! Numbers in text, without the formatting machinery.

#![forbid(unsafe_code)]

/// Appends `number`.
pub(crate) fn push(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = digit(number);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Appends `millis` as seconds: `1.234`.
pub(crate) fn push_seconds(millis: u64, out: &mut Vec<u8>) {
    push(millis / 1000, out);
    let rest = millis % 1000;
    out.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10), digit(rest)]);
}

/// Writes the lowest digits of `number`, as many as `out` holds.
pub(crate) fn fill(mut number: u64, out: &mut [u8]) {
    for place in out.iter_mut().rev() {
        *place = digit(number);
        number /= 10;
    }
}

fn digit(number: u64) -> u8 {
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
        let mut places = [0; 3];
        fill(1042, &mut places);
        assert_eq!(&places, b"042");
    }
}
