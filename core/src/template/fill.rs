//! What a template makes of a value.

use alloc::{
    borrow::ToOwned as _,
    format,
    string::{String, ToString as _},
    vec::Vec,
};
use core::fmt::Write as _;

use serde_json::Value;

use super::{Expression, Part, TemplateError};

/// Most bytes that one value may become.
const MAX_OUTPUT: usize = 64 << 20;

/// A value that a template is filled with.
pub(super) struct Scope<'a> {
    pub(super) root: &'a Value,
    pub(super) strict: bool,
}

impl Scope<'_> {
    pub(super) fn parts(
        &self,
        parts: &[Part],
        dot: &Value,
        out: &mut String,
    ) -> Result<(), TemplateError> {
        for part in parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Show(expression) => show(&self.value(expression, dot)?, out),
                Part::If(condition, then, other) => {
                    let chosen = if is_true(&self.value(condition, dot)?) {
                        then
                    } else {
                        other
                    };
                    self.parts(chosen, dot, out)?;
                }
                Part::With(value, then, other) => match self.value(value, dot)? {
                    value if is_true(&value) => self.parts(then, &value, out)?,
                    _ => self.parts(other, dot, out)?,
                },
                Part::Range(over, each, none) => {
                    let items: Vec<Value> = match self.value(over, dot)? {
                        Value::Array(items) => items,
                        Value::Object(fields) => fields.into_iter().map(|(_, item)| item).collect(),
                        Value::Null => Vec::new(),
                        other => {
                            let kind = kind(&other);
                            return Err(TemplateError::Value(format!("cannot range over {kind}")));
                        }
                    };
                    if items.is_empty() {
                        self.parts(none, dot, out)?;
                    }
                    for item in &items {
                        self.parts(each, item, out)?;
                    }
                }
            }
            if out.len() > MAX_OUTPUT {
                return Err(TemplateError::Value("the output is too long".to_owned()));
            }
        }
        Ok(())
    }

    fn field(&self, value: &Value, path: &[String]) -> Result<Value, TemplateError> {
        let mut value = value;
        for name in path {
            value = match value {
                Value::Object(fields) => match fields.get(name) {
                    Some(value) => value,
                    None if self.strict => {
                        let mut known: Vec<_> = fields.keys().map(String::as_str).collect();
                        known.sort_unstable();
                        let known = known.join(", ");
                        return Err(TemplateError::Value(format!(
                            "there is no field {name:?}; there are: {known}"
                        )));
                    }
                    None => &Value::Null,
                },
                Value::Null => &Value::Null,
                other => {
                    return Err(TemplateError::Value(format!(
                        "{} has no field {name:?}",
                        kind(other)
                    )));
                }
            };
        }
        Ok(value.clone())
    }

    fn value(&self, expression: &Expression, dot: &Value) -> Result<Value, TemplateError> {
        match expression {
            Expression::Path(path) => self.field(dot, path),
            Expression::Root(path) => self.field(self.root, path),
            Expression::Literal(value) => Ok(value.clone()),
            Expression::Of(inner, path) => self.field(&self.value(inner, dot)?, path),
            Expression::Call(name, arguments) => {
                let arguments: Result<Vec<_>, _> =
                    arguments.iter().map(|a| self.value(a, dot)).collect();
                call(name, &arguments?)
            }
        }
    }
}

fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    let wrong = || {
        let kinds: Vec<_> = arguments.iter().map(kind).collect();
        TemplateError::Value(format!("{name} cannot be used with ({})", kinds.join(", ")))
    };
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(wrong()),
    };
    Ok(match (name, arguments) {
        ("json", [value]) => Value::String(serde_json::to_string(value).map_err(|_| wrong())?),
        ("upper", [value]) => Value::String(text(value)?.to_uppercase()),
        ("lower", [value]) => Value::String(text(value)?.to_lowercase()),
        ("title", [value]) => {
            let text = text(value)?;
            let mut rest = text.chars();
            let first = rest.next().map(char::to_uppercase);
            Value::String(first.into_iter().flatten().chain(rest).collect())
        }
        ("len", [Value::Array(items)]) => Value::from(items.len()),
        ("len", [Value::Object(fields)]) => Value::from(fields.len()),
        ("len", [Value::String(text)]) => Value::from(text.len()),
        ("len", [Value::Null]) => Value::from(0),
        ("not", [value]) => Value::Bool(!is_true(value)),
        ("and", [.., last]) => arguments
            .iter()
            .find(|value| !is_true(value))
            .unwrap_or(last)
            .clone(),
        ("or", [.., last]) => arguments
            .iter()
            .find(|value| is_true(value))
            .unwrap_or(last)
            .clone(),
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            Value::Bool(others.iter().any(|other| other == first))
        }
        ("ne", [first, second]) => Value::Bool(first != second),
        ("join", [Value::Array(items), Value::String(between)]) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            Value::String(items.join(between))
        }
        ("join", [Value::Null, Value::String(_)]) => Value::String(String::new()),
        ("split", [Value::String(text), Value::String(at)]) => text
            .split(at.as_str())
            .map(|part| Value::String(part.to_owned()))
            .collect(),
        ("index", [value, keys @ ..]) => {
            let mut value = value;
            for key in keys {
                value = match (value, key) {
                    (Value::Object(fields), Value::String(key)) => {
                        // Go gives the zero value of a map's strings.
                        fields
                            .get(key)
                            .unwrap_or(const { &Value::String(String::new()) })
                    }
                    (Value::Array(items), Value::Number(at)) => {
                        let item = at
                            .as_u64()
                            .and_then(|at| items.get(usize::try_from(at).ok()?));
                        item.ok_or_else(|| {
                            TemplateError::Value(format!(
                                "there is no item {at} of {}",
                                items.len()
                            ))
                        })?
                    }
                    (Value::Null, Value::String(_)) => const { &Value::String(String::new()) },
                    _ => return Err(wrong()),
                };
            }
            value.clone()
        }
        ("print", values) => Value::String(values.iter().map(shown).collect()),
        ("println", values) => {
            let words: Vec<String> = values.iter().map(shown).collect();
            Value::String(words.join(" ") + "\n")
        }
        ("printf", [Value::String(form), values @ ..]) => {
            Value::String(printf(form, values).map_err(TemplateError::Value)?)
        }
        _ => return Err(wrong()),
    })
}

fn printf(form: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = form.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut next = || {
            values
                .next()
                .ok_or_else(|| "printf has too few values".to_owned())
        };
        match rest.next() {
            Some('%') => out.push('%'),
            Some('s' | 'v' | 'd') => out.push_str(&shown(next()?)),
            Some('q') => {
                let _ = write!(out, "{}", Value::String(shown(next()?)));
            }
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(format!("printf knows %s, %v, %d, %q and %%, not %{other}"));
            }
        }
    }
    match values.next() {
        None => Ok(out),
        Some(_) => Err("printf has too many values".to_owned()),
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shown(value: &Value) -> String {
    let mut out = String::new();
    show(value, &mut out);
    out
}

/// As Go prints values: lists in square brackets, maps as `map[key:value]`.
fn show(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("<no value>"),
        Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(' ');
                }
                show(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push_str("map[");
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort_unstable();
            for (at, key) in keys.into_iter().enumerate() {
                if at > 0 {
                    out.push(' ');
                }
                let _ = write!(out, "{key}:");
                show(&fields[key], out);
            }
            out.push(']');
        }
    }
}
