//! The name that was probably meant.

/// The candidate nearest to a name, if it is near enough to be a slip of the hand.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may differ: more than that and any short word resembles any other.
    let slips_max = (name.chars().count() / 3).clamp(1, 4);
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(slips, _)| *slips <= slips_max)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// A name that only stops short of a candidate, or spells it in another case or with other joints, is one slip away.
fn distance(name: &str, candidate: &str) -> usize {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let (name, candidate) = (plain(name), plain(candidate));
    if name.len() >= 4 && (candidate.starts_with(&name) || name.starts_with(&candidate)) {
        return 1;
    }
    strsim::damerau_levenshtein(&name, &candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_what_was_meant() {
        let names = ["address", "backlog", "reuseport", "proxy_protocol"];
        let table = [
            ("adress", Some("address")),
            ("addr", Some("address")),
            ("proxy-protocol", Some("proxy_protocol")),
            ("reusePort", Some("reuseport")),
            ("bakclog", Some("backlog")),
            ("tls", None),
            ("", None),
        ];
        for (name, meant) in table {
            assert_eq!(nearest(name, names), meant, "{name}");
        }
    }
}
