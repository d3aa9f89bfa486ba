//! What stands in an action.

use alloc::{borrow::ToOwned as _, boxed::Box, format, string::String, vec::Vec};
use core::{iter::Peekable, str::Chars};

use serde_json::Value;

use super::{Expression, MAX_DEPTH};

const FUNCTIONS: [&str; 16] = [
    "and", "eq", "index", "join", "json", "len", "lower", "ne", "not", "or", "print", "printf",
    "println", "split", "title", "upper",
];

/// Reads an expression.
pub(super) fn read(text: &str) -> Result<Expression, String> {
    let mut reader = Reader {
        rest: text.chars().peekable(),
        depth: 0,
    };
    let expression = reader.pipeline()?;
    match reader.rest.next() {
        None => Ok(expression),
        Some(c) => Err(format!("{c:?} is not expected")),
    }
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    depth: usize,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        while self.rest.next_if(|c| c.is_whitespace()).is_some() {}
    }

    /// `a | f b | g`: what stands before a bar is the last argument of what stands behind it.
    fn pipeline(&mut self) -> Result<Expression, String> {
        let mut value = self.command(None)?;
        loop {
            self.blanks();
            if self.rest.next_if_eq(&'|').is_none() {
                return Ok(value);
            }
            value = self.command(Some(value))?;
        }
    }

    fn command(&mut self, piped: Option<Expression>) -> Result<Expression, String> {
        self.blanks();
        if self.rest.peek().is_some_and(char::is_ascii_alphabetic) {
            let name = self.word();
            match name.as_str() {
                "true" | "false" if piped.is_none() => {
                    return Ok(Expression::Literal(Value::Bool(name == "true")));
                }
                "nil" if piped.is_none() => return Ok(Expression::Literal(Value::Null)),
                _ => {}
            }
            if !FUNCTIONS.contains(&name.as_str()) {
                return Err(format!(
                    "no function {name:?}; there are: {}; fields begin with a dot",
                    FUNCTIONS.join(", ")
                ));
            }
            let mut arguments = Vec::new();
            while let Some(argument) = self.operand()? {
                arguments.push(argument);
            }
            arguments.extend(piped);
            return Ok(Expression::Call(name, arguments));
        }
        match (self.operand()?, piped) {
            (Some(operand), None) => {
                if self.operand()?.is_some() {
                    return Err("a field takes no arguments".to_owned());
                }
                Ok(operand)
            }
            (_, Some(_)) => Err("only a function can stand behind |".to_owned()),
            (None, None) => Err("something is missing".to_owned()),
        }
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.rest.next_if(|c| c.is_alphanumeric() || *c == '_') {
            word.push(c);
        }
        word
    }

    fn fields(&mut self) -> Vec<String> {
        let mut fields = Vec::new();
        while self.rest.next_if_eq(&'.').is_some() {
            let word = self.word();
            if !word.is_empty() {
                fields.push(word);
            }
        }
        fields
    }

    fn operand(&mut self) -> Result<Option<Expression>, String> {
        self.blanks();
        Ok(Some(match self.rest.peek() {
            None | Some('|' | ')') => return Ok(None),
            Some('.') => Expression::Path(self.fields()),
            Some('$') => {
                self.rest.next();
                Expression::Root(self.fields())
            }
            Some('(') => {
                self.rest.next();
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(format!("brackets nest more than {MAX_DEPTH} deep"));
                }
                let inner = self.pipeline()?;
                self.depth -= 1;
                if self.rest.next() != Some(')') {
                    return Err("( without its )".to_owned());
                }
                match self.fields() {
                    fields if fields.is_empty() => inner,
                    fields => Expression::Of(Box::new(inner), fields),
                }
            }
            Some('"') => Expression::Literal(Value::String(self.string()?)),
            Some('`') => {
                self.rest.next();
                let mut text = String::new();
                loop {
                    match self.rest.next() {
                        Some('`') => break,
                        Some(c) => text.push(c),
                        None => return Err("` without its `".to_owned()),
                    }
                }
                Expression::Literal(Value::String(text))
            }
            Some(c) if c.is_ascii_digit() || *c == '-' => {
                let mut digits = String::new();
                while let Some(c) = self.rest.next_if(|c| c.is_ascii_digit() || *c == '-') {
                    digits.push(c);
                }
                let number = digits.parse::<i64>();
                let number = number.map_err(|_| format!("{digits:?} is not a number"))?;
                Expression::Literal(Value::from(number))
            }
            Some(c) if c.is_ascii_alphabetic() => {
                let word = self.word();
                match word.as_str() {
                    "true" | "false" => Expression::Literal(Value::Bool(word == "true")),
                    "nil" => Expression::Literal(Value::Null),
                    _ => return Err(format!("{word:?} is not expected; put it in brackets")),
                }
            }
            Some(c) => return Err(format!("{c:?} is not expected")),
        }))
    }

    fn string(&mut self) -> Result<String, String> {
        self.rest.next();
        let mut text = String::new();
        loop {
            match self.rest.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(match self.rest.next() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some(c @ ('"' | '\\')) => c,
                    _ => return Err("only \\n, \\t, \\\" and \\\\ are known".to_owned()),
                }),
                Some(c) => text.push(c),
                None => return Err("\" without its \"".to_owned()),
            }
        }
    }
}
