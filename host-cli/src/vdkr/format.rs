//! The forms of output that docker's `--format` knows: a table, JSON, a template.

use serde_json::{Map, Value};
use vdkr_core::template::Template;

use super::{
    error::{Error, Result},
    human,
};
use crate::output::plain;

/// How rows are shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// In columns, as the command does it.
    Table,
    /// As JSON.
    Json,
    /// By a template, a line each; with the names of the fields above when it is a table.
    Template {
        /// What to show of each.
        template: Template,
        /// Columns.
        table: bool,
    },
}

impl Format {
    /// Reads what stands behind `--format`.
    pub fn read(text: Option<&str>) -> Result<Self> {
        let (text, table) = match text {
            None | Some("table" | "") => return Ok(Self::Table),
            Some("json") => return Ok(Self::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(rest) => (rest, true),
                None => (text, false),
            },
        };
        // A shell's single quotes leave these as they are.
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let template = Template::parse(&text)
            .map_err(|error| Error::usage(format!("--format {text:?}: {error}")))?;
        Ok(Self::Template { template, table })
    }

    /// The lines for some rows, which are objects. `columns` are the fields and heads of the command's
    /// own table, in order.
    pub fn rows<R>(&self, rows: &[R], columns: &[(&str, &str)]) -> Result<String>
    where
        R: Clone + Into<Value>,
    {
        let rows: Vec<Value> = rows.iter().cloned().map(Into::into).map(harmless).collect();
        let cell = |row: &Value, field: &str| match row.get(field) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        match self {
            Self::Table => {
                let head = columns.iter().map(|(_, head)| (*head).to_owned()).collect();
                let lines = rows
                    .iter()
                    .map(|row| columns.iter().map(|(field, _)| cell(row, field)).collect());
                let lines: Vec<Vec<String>> = std::iter::once(head).chain(lines).collect();
                Ok(human::columns(&lines))
            }
            Self::Json => rows
                .iter()
                .map(|row| Ok(serde_json::to_string(row).map_err(wrong)? + "\n"))
                .collect(),
            Self::Template { template, table } => {
                let mut lines = Vec::new();
                if *table {
                    let heads: Map<String, Value> = template
                        .fields()
                        .into_iter()
                        .map(|field| (field.to_owned(), head(field, columns).into()))
                        .collect();
                    lines.push(
                        template
                            .render(&Value::Object(heads), false)
                            .map_err(wrong)?,
                    );
                }
                for row in &rows {
                    lines.push(template.render(row, true).map_err(wrong)?);
                }
                if *table {
                    let rows: Vec<Vec<String>> = lines
                        .iter()
                        .map(|line| line.split('\t').map(str::to_owned).collect())
                        .collect();
                    return Ok(human::columns(&rows));
                }
                Ok(lines.into_iter().map(|line| line + "\n").collect())
            }
        }
    }

    /// One object: pretty JSON unless a template says otherwise. What it holds is shown as it is, as
    /// docker does; what could drive a terminal does not get to one (see [`crate::output`]).
    pub fn object(&self, object: &Value) -> Result<String> {
        match self {
            Self::Table | Self::Json => {
                Ok(serde_json::to_string_pretty(object).map_err(wrong)? + "\n")
            }
            Self::Template { template, .. } => {
                Ok(template.render(object, true).map_err(wrong)? + "\n")
            }
        }
    }
}

/// A row without anything that could drive a terminal: a machine says what it likes.
fn harmless(row: Value) -> Value {
    match row {
        Value::String(text) => Value::String(plain(&text)),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (plain(&name), harmless(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(harmless).collect(),
        other => other,
    }
}

fn head(field: &str, columns: &[(&str, &str)]) -> String {
    let known = columns.iter().find(|(name, _)| *name == field);
    known.map_or_else(|| field.to_uppercase(), |(_, head)| (*head).to_owned())
}

fn wrong(error: impl std::fmt::Display) -> Error {
    Error::usage(format!("--format: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COLUMNS: [(&str, &str); 2] = [("ID", "IMAGE ID"), ("Size", "SIZE")];

    fn rows() -> Vec<Map<String, Value>> {
        let rows = json!([{"ID": "ab", "Size": "1kB"}, {"ID": "cdef", "Size": "2kB"}]);
        serde_json::from_value(rows).unwrap()
    }

    #[test]
    fn forms() {
        for (format, text) in [
            (None, "IMAGE ID   SIZE\nab         1kB\ncdef       2kB\n"),
            (
                Some("json"),
                "{\"ID\":\"ab\",\"Size\":\"1kB\"}\n{\"ID\":\"cdef\",\"Size\":\"2kB\"}\n",
            ),
            (Some("{{.ID}}={{.Size}}"), "ab=1kB\ncdef=2kB\n"),
            (
                Some("table {{.Size}}\\t{{.ID}}"),
                "SIZE   IMAGE ID\n1kB    ab\n2kB    cdef\n",
            ),
        ] {
            let format = Format::read(format).unwrap();
            assert_eq!(format.rows(&rows(), &COLUMNS).unwrap(), text);
        }
    }

    #[test]
    fn nothing_drives_the_terminal() {
        let list = [json!({"ID": ["a\u{1b}b"], "L": {"k\ne\u{9b}y": "v"}})];
        let format = Format::read(Some("{{.ID}} {{.L}}")).unwrap();
        let shown = format.rows(&list, &[]).unwrap();
        assert_eq!(shown.matches(char::is_control).collect::<Vec<_>>(), ["\n"]);
        let rows = [json!({"ID": "a\u{1b}[2Jb\nc"})];
        let format = Format::read(Some("{{.ID}}")).unwrap();
        assert_eq!(format.rows(&rows, &[]).unwrap(), "a[2Jbc\n");
        assert_eq!(
            Format::Table.rows(&rows, &[("ID", "ID")]).unwrap(),
            "ID\na[2Jbc\n"
        );
    }

    #[test]
    fn mistakes_name_the_fields() {
        let error = Format::read(Some("{{.Idd}}"))
            .unwrap()
            .rows(&rows(), &COLUMNS);
        assert!(error.unwrap_err().to_string().contains("ID, Size"));
        assert!(Format::read(Some("{{.ID")).is_err());
    }
}
