//! As much TOML as finding a key takes: registries.conf and containerd's config.toml are read for
//! one or two values each, and kept as they are.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

/// A statement of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// The table it stands in, or that it opens.
    pub(crate) table: Vec<String>,
    /// What it says.
    pub(crate) kind: Kind,
    /// Its bytes, without the comment and the line break behind it.
    pub(crate) range: Range<usize>,
}

/// The kinds of statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `[table]`
    Table,
    /// `[[table]]`
    Element,
    /// `key = value`
    Value {
        /// The parts of the key.
        key: Vec<String>,
        /// The bytes of the value.
        value: Range<usize>,
    },
}

impl Statement {
    /// The full path of a value: its table and its key.
    pub(crate) fn path(&self) -> Vec<&str> {
        let key = match &self.kind {
            Kind::Value { key, .. } => key.as_slice(),
            _ => &[],
        };
        self.table.iter().chain(key).map(String::as_str).collect()
    }
}

/// The statements of a document in order. An error is the offset of what cannot be read.
pub(crate) fn statements(text: &str) -> Result<Vec<Statement>, usize> {
    let mut reader = Reader { text, at: 0 };
    let mut found = Vec::new();
    let mut table = Vec::new();
    loop {
        reader.skip_lines();
        let start = reader.at;
        let Some(first) = reader.peek() else {
            return Ok(found);
        };
        let kind = if first == b'[' {
            reader.at += 1;
            let element = reader.peek() == Some(b'[');
            reader.at += usize::from(element);
            table = reader.key()?;
            reader.expect(b']')?;
            if element {
                reader.expect(b']')?;
                Kind::Element
            } else {
                Kind::Table
            }
        } else {
            let key = reader.key()?;
            reader.expect(b'=')?;
            reader.skip_blanks();
            let value = reader.at;
            reader.value()?;
            Kind::Value {
                key,
                value: value..reader.at,
            }
        };
        found.push(Statement {
            table: table.clone(),
            kind,
            range: start..reader.at,
        });
        reader.end_of_line()?;
    }
}

/// The strings of an array, `None` when the value is no array of strings.
pub(crate) fn string_array(value: &str) -> Option<Vec<String>> {
    let mut reader = Reader { text: value, at: 0 };
    let mut found = Vec::new();
    if reader.peek() != Some(b'[') {
        return None;
    }
    reader.at += 1;
    loop {
        reader.skip_lines();
        match reader.peek()? {
            b']' => return Some(found),
            b',' => reader.at += 1,
            _ => found.push(reader.string().ok()?),
        }
    }
}

/// The text of a string value, `None` when it is something else.
pub(crate) fn string(value: &str) -> Option<String> {
    Reader { text: value, at: 0 }.string().ok()
}

/// A string as TOML writes it.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            // Hosts and paths, which is all that is written, have no other control characters.
            other if other.is_control() => quoted.push('\u{fffd}'),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    fn skip_comment(&mut self) {
        if self.peek() == Some(b'#') {
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    /// White space, line breaks and comments.
    fn skip_lines(&mut self) {
        loop {
            while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
                self.at += 1;
            }
            if self.peek() != Some(b'#') {
                return;
            }
            self.skip_comment();
        }
    }

    fn end_of_line(&mut self) -> Result<(), usize> {
        self.skip_blanks();
        self.skip_comment();
        if self.rest().starts_with("\r\n") {
            self.at += 1;
        }
        match self.peek() {
            None | Some(b'\n') => Ok(()),
            Some(_) => Err(self.at),
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), usize> {
        self.skip_blanks();
        if self.peek() != Some(byte) {
            return Err(self.at);
        }
        self.at += 1;
        Ok(())
    }

    /// A dotted key.
    fn key(&mut self) -> Result<Vec<String>, usize> {
        let mut parts = Vec::new();
        loop {
            self.skip_blanks();
            let part = if matches!(self.peek(), Some(b'"' | b'\'')) {
                self.string()?
            } else {
                let bare = self
                    .rest()
                    .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
                    .unwrap_or(self.rest().len());
                if bare == 0 {
                    return Err(self.at);
                }
                let part = self.rest()[..bare].into();
                self.at += bare;
                part
            };
            parts.push(part);
            self.skip_blanks();
            if self.peek() != Some(b'.') {
                return Ok(parts);
            }
            self.at += 1;
        }
    }

    /// Moves behind a value.
    fn value(&mut self) -> Result<(), usize> {
        match self.peek() {
            Some(b'"' | b'\'') => self.string().map(drop),
            Some(b'[' | b'{') => self.brackets(),
            _ => {
                let end = self
                    .rest()
                    .find(['\n', '\r', '#'])
                    .unwrap_or(self.rest().len());
                let value = self.rest()[..end].trim_end().len();
                if value == 0 {
                    return Err(self.at);
                }
                self.at += value;
                Ok(())
            }
        }
    }

    fn brackets(&mut self) -> Result<(), usize> {
        let start = self.at;
        let mut open = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'[' | b'{' => open += 1,
                b']' | b'}' => open -= 1,
                b'"' | b'\'' => {
                    self.string()?;
                    continue;
                }
                b'#' => {
                    self.skip_comment();
                    continue;
                }
                _ => {}
            }
            self.at += 1;
            if open == 0 {
                return Ok(());
            }
        }
        Err(start)
    }

    /// A basic or literal string, of one line or several.
    fn string(&mut self) -> Result<String, usize> {
        let start = self.at;
        let quote = match self.peek() {
            Some(b'"') => "\"",
            Some(b'\'') => "'",
            _ => return Err(start),
        };
        let long = if quote == "\"" { "\"\"\"" } else { "'''" };
        let ending = if self.rest().starts_with(long) {
            long
        } else {
            quote
        };
        self.at += ending.len();
        if ending == long && self.rest().starts_with('\n') {
            self.at += 1;
        }
        let mut text = String::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(ending) {
                self.at += ending.len();
                return Ok(text);
            }
            let character = rest.chars().next().ok_or(start)?;
            if character == '\n' && ending != long {
                return Err(start);
            }
            self.at += character.len_utf8();
            if character == '\\' && quote == "\"" {
                self.escape(&mut text).ok_or(start)?;
            } else {
                text.push(character);
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let kind = self.rest().chars().next()?;
        self.at += kind.len_utf8();
        let plain = match kind {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            '"' | '\\' => kind,
            'u' | 'U' => {
                let digits = self.rest().get(..if kind == 'u' { 4 } else { 8 })?;
                let code = u32::from_str_radix(digits, 16).ok()?;
                self.at += digits.len();
                char::from_u32(code)?
            }
            // A line that goes on: the white space up to the next character is no part of it.
            ' ' | '\t' | '\n' | '\r' => {
                let rest = self.rest();
                self.at += rest.len() - rest.trim_start().len();
                return Some(());
            }
            _ => return None,
        };
        text.push(plain);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_found_with_their_tables() {
        let text = "# a # comment\r\nlist = [ # [\n  \"a\\\"]\", 'b',\n]  # end\nversion = 2\n\n\
            [plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"\" # none\n\
            [[registry]]\nlocation = 'h:5000'\nmirror = { a = 1, b = [\"}\"] }\nlong = \"\"\"\n[x]\n\\\n  y\"\"\"\n";
        let found = statements(text).unwrap();
        let paths: Vec<_> = found.iter().map(Statement::path).collect();
        let registry = ["plugins", "io.containerd.grpc.v1.cri", "registry"];
        assert_eq!(
            paths,
            [
                &["list"][..],
                &["version"],
                &registry,
                &[registry[0], registry[1], registry[2], "config_path"],
                &["registry"],
                &["registry", "location"],
                &["registry", "mirror"],
                &["registry", "long"],
            ]
        );
        let value = |at: usize| match &found[at].kind {
            Kind::Value { value, .. } => &text[value.clone()],
            other => panic!("{other:?}"),
        };
        assert_eq!(string_array(value(0)).unwrap(), ["a\"]", "b"]);
        assert_eq!(value(1), "2");
        assert_eq!(string(value(3)).unwrap(), "");
        assert_eq!(string(value(5)).unwrap(), "h:5000");
        assert_eq!(string(value(7)).unwrap(), "[x]\ny");
        assert_eq!(found[4].kind, Kind::Element);
        assert_eq!(&text[found[4].range.clone()], "[[registry]]");
    }

    #[test]
    fn what_is_no_toml_is_said() {
        for text in [
            "a",
            "a =",
            "= 1",
            "[a",
            "a = [1",
            "a = \"b",
            "a = 1\nb",
            "a = \"x\" y",
            "[a] b",
        ] {
            assert!(statements(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "[a\\[\\]{}=.\"'#\\\\ \n\r1é]{0,60}") {
            if let Ok(found) = statements(&text) {
                for statement in found {
                    prop_assert!(text.get(statement.range).is_some());
                }
            }
            let _ = string_array(&text);
        }

        #[test]
        fn quoted_strings_are_read_back(text in "[^\\p{Cc}]{0,20}") {
            prop_assert_eq!(string(&quoted(&text)).unwrap(), text);
        }
    }
}
