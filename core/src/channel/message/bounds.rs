//! How many values a message may hold. Its length alone bounds no memory: `{},` is three bytes, and
//! a row of a list with room for all of its fields.

/// Most values of one message, be they in lists or in objects.
pub const MAX_VALUES: usize = 1 << 17;

/// Whether JSON text has at most [`MAX_VALUES`] values. Of text that is no JSON it says nothing.
pub(super) fn has_few_values(json: &[u8]) -> bool {
    let mut values = 0;
    let (mut quoted, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            // Each but the first of an object or list follows a comma.
            b',' | b'[' | b'{' if !quoted => values += 1,
            _ => {}
        }
    }
    values <= MAX_VALUES
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::String};

    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        let list = |one: &str, count: usize| format!("[{}0]", one.repeat(count));
        for (text, few) in [
            (list("0,", MAX_VALUES - 1), true),
            (list("0,", MAX_VALUES), false),
            (list("{},", MAX_VALUES / 2 - 1), true),
            (list("{},", MAX_VALUES / 2), false),
            (format!("[\"{}\"]", ",[{".repeat(MAX_VALUES)), true),
            (format!("[\"\\\"{}\\\\\"]", ",".repeat(MAX_VALUES)), true),
            (format!("[\"\\\\\"{}0]", ",0".repeat(MAX_VALUES)), false),
            (String::new(), true),
        ] {
            assert_eq!(has_few_values(text.as_bytes()), few, "{text:.20}");
        }
    }
}
