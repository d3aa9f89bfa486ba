//! `Link: <…>; rel="next"` (RFC 8288), by which lists continue.

use alloc::{format, string::String};

use super::{MAX_HEADER, challenge::Input};

/// Most links of one header that are looked at.
const MAX_LINKS: usize = 64;

/// The target of the first link of relation `next`, as it is written: relative or absolute, and
/// not to be followed to another origin.
///
/// `None` when there is none, or when the header is malformed before it or longer than
/// [`MAX_HEADER`].
pub fn next_link(header: &str) -> Option<&str> {
    if header.len() > MAX_HEADER {
        return None;
    }
    let mut input = Input {
        text: header,
        at: 0,
    };
    for _ in 0..MAX_LINKS {
        input.skip(|byte| matches!(byte, b' ' | b'\t' | b','));
        if input.peek()? != b'<' {
            return None;
        }
        input.at += 1;
        let target = input.run(|byte| byte.is_ascii_graphic() && byte != b'>' && byte != b'<');
        if input.peek()? != b'>' {
            return None;
        }
        input.at += 1;
        if relation_is_next(&mut input)? {
            return (!target.is_empty()).then_some(target);
        }
    }
    None
}

/// Reads the parameters of one link. Only the first `rel` counts (RFC 8288 §3.3).
fn relation_is_next(input: &mut Input<'_>) -> Option<bool> {
    let mut relation = None;
    loop {
        input.skip_space();
        match input.peek() {
            None | Some(b',') => return Some(relation.unwrap_or(false)),
            Some(b';') => input.at += 1,
            Some(_) => return None,
        }
        input.skip_space();
        let name = input.run(|byte| byte.is_ascii_alphanumeric() || b"-_*".contains(&byte));
        input.skip_space();
        if input.peek() != Some(b'=') {
            continue;
        }
        input.at += 1;
        input.skip_space();
        let value = if input.peek() == Some(b'"') {
            input.quoted()?
        } else {
            input
                .run(|byte| byte.is_ascii_graphic() && !b",;\"".contains(&byte))
                .into()
        };
        if name.eq_ignore_ascii_case("rel") && relation.is_none() {
            let mut relations = value.split_ascii_whitespace();
            relation = Some(relations.any(|relation| relation.eq_ignore_ascii_case("next")));
        }
    }
}

/// Value of a `Link` header that continues a list at `target`, a path with its query.
pub fn next_page(target: &str) -> String {
    format!("<{target}>; rel=\"next\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn links_as_registries_send_them() {
        for (header, target) in [
            (
                "</v2/_catalog?last=b&n=10>; rel=\"next\"",
                Some("/v2/_catalog?last=b&n=10"),
            ),
            (
                "<https://h/v2/_catalog?n=1>;rel=next",
                Some("https://h/v2/_catalog?n=1"),
            ),
            (
                "</a>; rel=prev, </b>; title=\"x, </c>; rel=next\"; REL=\"last Next\"",
                Some("/b"),
            ),
            ("</a>; rel=prev; rel=next", None),
            ("</a>; crossorigin; rel=next", Some("/a")),
            ("</a,b>; rel=next", Some("/a,b")),
            ("<>; rel=next", None),
            ("</a>", None),
            ("</a>; rel=", None),
            ("</a>; rel=\"next", None),
            ("</a b>; rel=next", None),
            ("</a\r\nx>; rel=next", None),
            ("</é>; rel=next", None),
            ("/a; rel=next", None),
            ("</a", None),
            ("", None),
        ] {
            assert_eq!(next_link(header), target, "{header}");
        }
        let long = format!("</{}>; rel=next", "a".repeat(MAX_HEADER));
        assert_eq!(next_link(&long), None);
        let many = format!("{}</b>; rel=next", "</a>,".repeat(MAX_LINKS));
        assert_eq!(next_link(&many), None);
    }

    proptest! {
        #[test]
        fn round_trip(target in "/[!-;=?-~]{0,40}") {
            let header = next_page(&target);
            prop_assert_eq!(next_link(&header), Some(target.as_str()));
        }

        #[test]
        fn never_panics(header in "([</>;=,\" é]|rel|next|.){0,30}") {
            let _ = next_link(&header);
        }
    }
}
