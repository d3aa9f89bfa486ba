//! Edits of a JSON text that leave every other byte as it is: the order of members, unknown members,
//! numbers as they were written, line breaks and indentation.
//!
//! For documents that belong to somebody else, such as docker's `daemon.json`, and for documents
//! whose digest is their name, such as image configurations.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::ops::Range;

use serde::de::IgnoredAny;
use serde_json::Value;

/// Why a text cannot be edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonTextError {
    /// It is no JSON.
    #[error("it is not JSON: {0}")]
    Malformed(String),
    /// Two members have the same name, and programs differ in which one they believe.
    #[error("it has the member {0:?} twice")]
    Duplicate(String),
    /// Something on the way, or at its end, has another type.
    #[error("{path} is not {expected}")]
    Type {
        /// The members that lead there, joined by dots; `the document` for the whole.
        path: String,
        /// `an object` or `an array`.
        expected: &'static str,
    },
    /// There is no such element of an array.
    #[error("{0} does not exist")]
    Missing(String),
}

/// One step into a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A member of an object.
    Key(&'a str),
    /// An element of an array.
    At(usize),
}

/// The text of the value at `path`, `None` when there is none.
pub fn get<'t>(text: &'t str, path: &[Step<'_>]) -> Result<Option<&'t str>, JsonTextError> {
    let root = parse(text)?;
    let mut node = &root;
    for step in path {
        let Some(next) = node.child(*step)? else {
            return Ok(None);
        };
        node = next;
    }
    Ok(Some(&text[node.range.clone()]))
}

/// The text with `value` at `path`, made where it is missing, objects on the way included. A `null`
/// on the way counts as missing. Other bytes stay.
pub fn set(text: &str, path: &[Step<'_>], value: &Value) -> Result<String, JsonTextError> {
    let root = parse(text)?;
    let style = Style::of(text, &root);
    let mut node = &root;
    for (depth, step) in path.iter().enumerate() {
        let is_null = matches!(node.inner, Inner::Null);
        let (Step::Key(key), true) = (step, is_null || matches!(node.inner, Inner::Object(_)))
        else {
            match node.child(*step)? {
                Some(next) => node = next,
                None => return Err(JsonTextError::Missing(shown(&path[..=depth]))),
            }
            continue;
        };
        if is_null && depth > 0 {
            let value = nested(&path[depth..], value)?;
            let indent = line_indent(text, node.range.start);
            return Ok(splice(
                text,
                node.range.clone(),
                &style.render(&value, indent),
            ));
        }
        let Some(next) = node.child(*step)? else {
            let value = nested(&path[depth + 1..], value)?;
            return node
                .insert(text, &style, Some(key), &value)
                .ok_or_else(|| type_error(&path[..depth], "an object"));
        };
        node = next;
    }
    let indent = line_indent(text, node.range.start);
    Ok(splice(
        text,
        node.range.clone(),
        &style.render(value, indent),
    ))
}

/// The text with `value` behind the last element of the array at `path`. A missing array is made.
pub fn push(text: &str, path: &[Step<'_>], value: &Value) -> Result<String, JsonTextError> {
    let root = parse(text)?;
    let mut node = &root;
    for step in path {
        match node.child(*step)? {
            Some(next) => node = next,
            None => return set(text, path, &Value::Array([value.clone()].into())),
        }
    }
    if matches!(node.inner, Inner::Null) {
        return set(text, path, &Value::Array([value.clone()].into()));
    }
    node.insert(text, &Style::of(text, &root), None, value)
        .ok_or_else(|| type_error(path, "an array"))
}

/// Sets several values that are there, in one pass. A path that leads nowhere is an error.
pub fn replace(text: &str, edits: &[(Vec<Step<'_>>, Value)]) -> Result<String, JsonTextError> {
    let root = parse(text)?;
    let mut found = Vec::with_capacity(edits.len());
    for (path, value) in edits {
        let mut node = &root;
        for (depth, step) in path.iter().enumerate() {
            node = node
                .child(*step)?
                .ok_or_else(|| JsonTextError::Missing(shown(&path[..=depth])))?;
        }
        found.push((node.range.clone(), value.to_string()));
    }
    found.sort_by_key(|(range, _)| range.start);
    let mut edited = String::with_capacity(text.len());
    let mut at = 0;
    for (range, value) in found {
        if range.start < at {
            continue; // the same place twice: the first stays
        }
        edited.push_str(&text[at..range.start]);
        edited.push_str(&value);
        at = range.end;
    }
    edited.push_str(&text[at..]);
    Ok(edited)
}

/// The text without the member at the end of `path`; unchanged when there is none.
pub fn remove(text: &str, path: &[Step<'_>]) -> Result<String, JsonTextError> {
    let root = parse(text)?;
    let Some((Step::Key(key), parents)) = path.split_last() else {
        return Ok(text.to_owned());
    };
    let mut node = &root;
    for step in parents {
        match node.child(*step)? {
            Some(next) => node = next,
            None => return Ok(text.to_owned()),
        }
    }
    let Inner::Object(members) = &node.inner else {
        return Ok(text.to_owned());
    };
    let Some(at) = members.iter().position(|member| member.key == *key) else {
        return Ok(text.to_owned());
    };
    let member = &members[at];
    let cut = match (at.checked_sub(1), members.get(at + 1)) {
        (Some(before), _) => members[before].value.range.end..member.value.range.end,
        (None, Some(after)) => member.start..after.start,
        (None, None) => member.start..member.value.range.end,
    };
    Ok(splice(text, cut, ""))
}

fn type_error(path: &[Step<'_>], expected: &'static str) -> JsonTextError {
    JsonTextError::Type {
        path: shown(path),
        expected,
    }
}

fn shown(path: &[Step<'_>]) -> String {
    if path.is_empty() {
        return "the document".to_owned();
    }
    let steps: Vec<_> = path
        .iter()
        .map(|step| match step {
            Step::Key(key) => (*key).to_owned(),
            Step::At(index) => index.to_string(),
        })
        .collect();
    steps.join(".")
}

fn nested(path: &[Step<'_>], value: &Value) -> Result<Value, JsonTextError> {
    let Some((first, rest)) = path.split_first() else {
        return Ok(value.clone());
    };
    match first {
        Step::Key(key) => {
            let mut object = serde_json::Map::new();
            object.insert((*key).to_owned(), nested(rest, value)?);
            Ok(Value::Object(object))
        }
        Step::At(_) => Err(JsonTextError::Missing(shown(path))),
    }
}

fn splice(text: &str, range: Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &text[..range.start], &text[range.end..])
}

/// A value and where it stands.
#[derive(Debug)]
struct Node {
    range: Range<usize>,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Null,
    Scalar,
    Array(Vec<Node>),
    Object(Vec<Member>),
}

#[derive(Debug)]
struct Member {
    /// Where its name starts.
    start: usize,
    key: String,
    value: Node,
}

impl Node {
    fn child(&self, step: Step<'_>) -> Result<Option<&Self>, JsonTextError> {
        match (step, &self.inner) {
            (Step::At(index), Inner::Array(items)) => Ok(items.get(index)),
            (Step::Key(key), Inner::Object(members)) => {
                let mut named = members.iter().filter(|member| member.key == key);
                let found = named.next();
                match named.next() {
                    Some(_) => Err(JsonTextError::Duplicate(key.to_owned())),
                    None => Ok(found.map(|member| &member.value)),
                }
            }
            (_, Inner::Null) => Ok(None),
            (Step::At(_), _) => Err(type_error(&[], "an array")),
            (Step::Key(key), _) => Err(JsonTextError::Type {
                path: format!("what holds {key}"),
                expected: "an object",
            }),
        }
    }

    /// The text with one more member or element; `None` when this is neither object nor array.
    fn insert(
        &self,
        text: &str,
        style: &Style<'_>,
        key: Option<&str>,
        value: &Value,
    ) -> Option<String> {
        // Where each child starts, and where the last one ends.
        let (starts, end): (Vec<usize>, _) = match (&self.inner, key) {
            (Inner::Object(members), Some(_)) => (
                members.iter().map(|member| member.start).collect(),
                members.last().map(|member| member.value.range.end),
            ),
            (Inner::Array(items), None) => (
                items.iter().map(|item| item.range.start).collect(),
                items.last().map(|item| item.range.end),
            ),
            _ => return None,
        };
        let name = key.map_or_else(String::new, |key| format!("{}{}", quoted(key), style.colon));
        let (Some(last), Some(end)) = (starts.last(), end) else {
            let indent = line_indent(text, self.range.start);
            let (open, close) = match key {
                Some(_) => ('{', '}'),
                None => ('[', ']'),
            };
            let whole = match style.unit {
                Some(unit) => {
                    let inner = format!("{indent}{unit}");
                    let value = style.render(value, &inner);
                    format!("{open}\n{inner}{name}{value}\n{indent}{close}")
                }
                None => format!("{open}{name}{}{close}", style.render(value, "")),
            };
            return Some(splice(text, self.range.clone(), &whole));
        };
        // The white space before the last child, which is what stands behind a comma.
        let gap = &text[..*last];
        let gap = &gap[gap.trim_end().len()..];
        let gap = match (gap, starts.len()) {
            ("", 1) if style.colon.ends_with(' ') => " ",
            (gap, _) => gap,
        };
        let indent = gap.rsplit_once('\n').map_or("", |(_, indent)| indent);
        let value = style.render(value, indent);
        Some(splice(text, end..end, &format!(",{gap}{name}{value}")))
    }
}

/// How a document is laid out.
#[derive(Debug)]
struct Style<'t> {
    /// The indentation of one level; `None` when the document is one line.
    unit: Option<&'t str>,
    colon: &'static str,
}

impl<'t> Style<'t> {
    fn of(text: &'t str, root: &Node) -> Self {
        let first = match &root.inner {
            Inner::Object(members) => members
                .first()
                .map(|member| (member.start, Some(member.value.range.start))),
            Inner::Array(items) => items.first().map(|item| (item.range.start, None)),
            Inner::Null | Inner::Scalar => None,
        };
        let Some((start, value)) = first else {
            return Self {
                unit: text.trim_end().contains('\n').then_some("  "),
                colon: ": ",
            };
        };
        let spaced = value.is_none_or(|value| text[..value].ends_with([' ', '\t', '\n']));
        let before = &text[root.range.start + 1..start];
        Self {
            unit: before.rsplit_once('\n').map(|(_, unit)| unit),
            colon: if spaced { ": " } else { ":" },
        }
    }

    fn render(&self, value: &Value, indent: &str) -> String {
        let inner = format!("{indent}{}", self.unit.unwrap_or_default());
        let items: Vec<String> = match value {
            Value::Array(items) => items.iter().map(|item| self.render(item, &inner)).collect(),
            Value::Object(members) => members
                .iter()
                .map(|(key, value)| {
                    format!(
                        "{}{}{}",
                        quoted(key),
                        self.colon,
                        self.render(value, &inner)
                    )
                })
                .collect(),
            scalar => return scalar.to_string(),
        };
        let (open, close) = if value.is_array() {
            ('[', ']')
        } else {
            ('{', '}')
        };
        if items.is_empty() {
            return format!("{open}{close}");
        }
        if self.unit.is_some() {
            let items = items.join(&format!(",\n{inner}"));
            return format!("{open}\n{inner}{items}\n{indent}{close}");
        }
        let comma = if self.colon.ends_with(' ') { ", " } else { "," };
        format!("{open}{}{close}", items.join(comma))
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The white space at the start of the line that holds `at`.
fn line_indent(text: &str, at: usize) -> &str {
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = &text[start..at];
    &line[..line.len() - line.trim_start().len()]
}

fn parse(text: &str) -> Result<Node, JsonTextError> {
    // The strict reader decides what is JSON, how deep it may nest, and that nothing follows it.
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|error| JsonTextError::Malformed(error.to_string()))?;
    let mut scanner = Scanner {
        text,
        at: 0,
        depth: 0,
    };
    scanner
        .value()
        .ok_or_else(|| JsonTextError::Malformed("it nests too deep".to_owned()))
}

/// Most levels of a document.
const MAX_DEPTH: usize = 128;

/// Finds the places of values in a text that is known to be JSON.
struct Scanner<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
}

impl Scanner<'_> {
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let blank = rest
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
            .count();
        self.at += blank;
        rest.get(blank).copied()
    }

    fn value(&mut self) -> Option<Node> {
        let first = self.peek()?;
        let start = self.at;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let inner = match first {
            b'{' => Inner::Object(self.children(|scanner| {
                let start = scanner.at;
                let key = scanner.string()?;
                scanner.peek().filter(|byte| *byte == b':')?;
                scanner.at += 1;
                Some(Member {
                    start,
                    key,
                    value: scanner.value()?,
                })
            })?),
            b'[' => Inner::Array(self.children(Self::value)?),
            b'"' => {
                self.string()?;
                Inner::Scalar
            }
            b'n' => {
                self.at += "null".len();
                Inner::Null
            }
            _ => {
                let rest = &self.text.as_bytes()[self.at..];
                self.at += rest
                    .iter()
                    .take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
                    .count();
                Inner::Scalar
            }
        };
        self.depth -= 1;
        Some(Node {
            range: start..self.at,
            inner,
        })
    }

    /// What stands between brackets, which the scanner is at.
    fn children<T>(&mut self, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut children = Vec::new();
        self.at += 1;
        loop {
            match self.peek()? {
                b']' | b'}' => {
                    self.at += 1;
                    return Some(children);
                }
                b',' => self.at += 1,
                _ => children.push(one(self)?),
            }
            // `one` moves on or gives up, so this ends; white space before a child is no part of it.
            self.peek()?;
        }
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        if bytes.get(start) != Some(&b'"') {
            return None;
        }
        let mut at = start + 1;
        loop {
            match bytes.get(at)? {
                b'\\' => at += 2,
                b'"' => break,
                _ => at += 1,
            }
        }
        self.at = at + 1;
        serde_json::from_str(self.text.get(start..self.at)?).ok()
    }
}

#[cfg(test)]
mod tests;
