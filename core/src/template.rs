//! The part of Go's templates that people use with docker's `--format`: fields (`{{.Config.Env}}`),
//! `json`, `join`, `split`, `upper`, `lower`, `title`, `println`, `printf` of `%s` and `%v`, `len`, `index`, `eq`, `ne`, `not`,
//! `and`, `or`, pipes, `if`/`else`, `range`, `with`, trim marks, comments.
//!
//! What is not known is refused when the template is read, before anything is asked or written.

use alloc::{borrow::ToOwned as _, boxed::Box, format, string::String, vec::Vec};

use serde_json::Value;

mod fill;
mod read;
#[cfg(test)]
mod tests;

use fill::Scope;
use read::read;

/// Longest template, bytes.
const MAX_TEMPLATE: usize = 16 * 1024;
/// How deep blocks and brackets may nest.
const MAX_DEPTH: usize = 16;

/// A template cannot be read, or does not fit the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is wrong at this place.
    #[error("the template is wrong at byte {offset}: {problem}")]
    Syntax {
        /// Bytes from its start.
        offset: usize,
        /// What is wrong.
        problem: String,
    },
    /// The value does not have what the template wants.
    #[error("{0}")]
    Value(String),
}

/// A template, ready to be filled.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Show(Expression),
    If(Expression, Vec<Part>, Vec<Part>),
    Range(Expression, Vec<Part>, Vec<Part>),
    With(Expression, Vec<Part>, Vec<Part>),
}

#[derive(Clone, Debug, PartialEq)]
enum Expression {
    /// Fields of the value at hand; none is the value itself.
    Path(Vec<String>),
    /// Fields of the whole value (`$.Id`).
    Root(Vec<String>),
    Literal(Value),
    Call(String, Vec<Expression>),
    /// Fields of what brackets hold.
    Of(Box<Expression>, Vec<String>),
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let wrong = |offset, problem: &str| TemplateError::Syntax {
            offset,
            problem: problem.to_owned(),
        };
        if text.len() > MAX_TEMPLATE {
            return Err(wrong(0, "it is longer than 16 KiB"));
        }
        let mut blocks = Blocks::default();
        let mut at = 0;
        let mut trim = false;
        while let Some(start) = text[at..].find("{{").map(|found| at + found) {
            let mut before = &text[at..start];
            if trim {
                before = before.trim_start();
            }
            let mut inner_start = start + 2;
            if text[inner_start..].starts_with("- ") {
                before = before.trim_end();
                inner_start += 2;
            }
            blocks.push(Part::Text(before.to_owned()));
            let end = end_of_action(text, inner_start)
                .ok_or_else(|| wrong(start, "{{ without its }}"))?;
            let mut inner = &text[inner_start..end];
            trim = inner.ends_with(" -");
            if trim {
                inner = &inner[..inner.len() - 2];
            }
            blocks.action(inner, inner_start)?;
            at = end + 2;
        }
        let rest = &text[at..];
        let rest = if trim { rest.trim_start() } else { rest };
        blocks.push(Part::Text(rest.to_owned()));
        let parts = blocks
            .finish()
            .ok_or_else(|| wrong(text.len(), "a block without its {{end}}"))?;
        Ok(Self { parts })
    }

    /// Fills it with a value. With `strict`, a field that is not there is an error; otherwise it is
    /// shown as docker shows it, `<no value>`.
    pub fn render(&self, value: &Value, strict: bool) -> Result<String, TemplateError> {
        let mut out = String::new();
        let scope = Scope {
            root: value,
            strict,
        };
        scope.parts(&self.parts, value, &mut out)?;
        Ok(out)
    }

    /// Every first field that it shows somewhere: what a table's head says.
    pub fn fields(&self) -> Vec<&str> {
        fn of<'a>(expression: &'a Expression, fields: &mut Vec<&'a str>) {
            match expression {
                Expression::Path(path) | Expression::Root(path) => {
                    fields.extend(path.first().map(String::as_str));
                }
                Expression::Call(_, arguments) => {
                    for argument in arguments {
                        of(argument, fields);
                    }
                }
                Expression::Of(inner, _) => of(inner, fields),
                Expression::Literal(_) => {}
            }
        }
        fn walk<'a>(parts: &'a [Part], fields: &mut Vec<&'a str>) {
            for part in parts {
                match part {
                    Part::Text(_) => {}
                    Part::Show(expression) => of(expression, fields),
                    Part::If(condition, then, other) => {
                        of(condition, fields);
                        walk(then, fields);
                        walk(other, fields);
                    }
                    // Inside, names are of other values.
                    Part::Range(over, ..) | Part::With(over, ..) => of(over, fields),
                }
            }
        }
        let mut fields = Vec::new();
        walk(&self.parts, &mut fields);
        fields
    }
}

/// Where the `}}` of an action stands: not within a string.
fn end_of_action(text: &str, start: usize) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text[start..].char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '`') => quote = Some(c),
            None if text[start + at..].starts_with("}}") => return Some(start + at),
            None => {}
        }
    }
    None
}

/// Blocks under way: the kind, the condition, the parts before and after `else`.
#[derive(Default)]
struct Blocks {
    open: Vec<Open>,
    parts: Vec<Part>,
}

struct Open {
    kind: &'static str,
    condition: Expression,
    outer: Vec<Part>,
    then: Option<Vec<Part>>,
    /// An `else if`, which ends with the one before it.
    chained: bool,
}

impl Blocks {
    fn push(&mut self, part: Part) {
        if part != Part::Text(String::new()) {
            self.parts.push(part);
        }
    }

    fn action(&mut self, text: &str, offset: usize) -> Result<(), TemplateError> {
        let wrong = |problem: String| TemplateError::Syntax { offset, problem };
        let text = text.trim();
        if text.starts_with("/*") {
            return match text.ends_with("*/") {
                true => Ok(()),
                false => Err(wrong("a comment without its end".to_owned())),
            };
        }
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let expression = |text: &str| read(text).map_err(&wrong);
        match word {
            "if" => self.begin("if", expression(rest)?, false).map_err(wrong),
            "range" => self.begin("range", expression(rest)?, false).map_err(wrong),
            "with" => self.begin("with", expression(rest)?, false).map_err(wrong),
            "else" => {
                let parts = core::mem::take(&mut self.parts);
                let open = self.open.last_mut().filter(|open| open.then.is_none());
                let open = open.ok_or_else(|| wrong("{{else}} without a block".to_owned()))?;
                open.then = Some(parts);
                match rest.trim().strip_prefix("if") {
                    Some(condition) if open.kind == "if" => self
                        .begin("if", expression(condition)?, true)
                        .map_err(wrong),
                    None if rest.trim().is_empty() => Ok(()),
                    _ => Err(wrong("only {{else}} and {{else if}} are known".to_owned())),
                }
            }
            "end" if rest.is_empty() => {
                while let Some(open) = self.open.pop() {
                    let last = core::mem::replace(&mut self.parts, open.outer);
                    let (then, other) = match open.then {
                        Some(then) => (then, last),
                        None => (last, Vec::new()),
                    };
                    self.parts.push(match open.kind {
                        "if" => Part::If(open.condition, then, other),
                        "range" => Part::Range(open.condition, then, other),
                        _ => Part::With(open.condition, then, other),
                    });
                    if !open.chained {
                        return Ok(());
                    }
                }
                Err(wrong("{{end}} without a block".to_owned()))
            }
            "" => Err(wrong("an action without content".to_owned())),
            _ => {
                let shown = expression(text)?;
                self.push(Part::Show(shown));
                Ok(())
            }
        }
    }

    fn begin(
        &mut self,
        kind: &'static str,
        condition: Expression,
        chained: bool,
    ) -> Result<(), String> {
        if self.open.len() == MAX_DEPTH {
            return Err(format!("blocks nest more than {MAX_DEPTH} deep"));
        }
        self.open.push(Open {
            kind,
            condition,
            outer: core::mem::take(&mut self.parts),
            then: None,
            chained,
        });
        Ok(())
    }

    fn finish(self) -> Option<Vec<Part>> {
        self.open.is_empty().then_some(self.parts)
    }
}
