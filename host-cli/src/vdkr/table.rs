//! `--format` of lists: a table, JSON objects, or a template filled for each row.

use serde_json::Value;
use vdkr_core::template::Template;

use super::{
    error::{Error, Result},
    human,
};

/// How a list is shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// The usual columns.
    Table,
    /// One JSON object a line.
    Json,
    /// A template for each row.
    Rows(Template),
    /// A template for each row, laid out in columns below a head.
    Columns(Template),
}

impl Form {
    /// Reads `table`, `json`, `table TEMPLATE` or a template.
    pub fn read(text: Option<&str>) -> Result<Self> {
        let template = |text: &str| {
            // As docker does, so that a shell need not make the character.
            let text = text.replace("\\t", "\t").replace("\\n", "\n");
            Template::parse(&text).map_err(|error| Error::usage(error.to_string()))
        };
        match text {
            None | Some("table" | "") => Ok(Self::Table),
            Some("json") => Ok(Self::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(rest) => Ok(Self::Columns(template(rest.trim())?)),
                None => Ok(Self::Rows(template(text)?)),
            },
        }
    }

    /// The rows as text. `heads` has the usual columns, each with its head.
    pub fn show(&self, rows: &[Value], heads: &[(&str, &str)]) -> Result<String> {
        let wrong = |error: vdkr_core::template::TemplateError| Error::usage(error.to_string());
        let rows: Vec<Value> = rows.iter().map(harmless).collect();
        let rows = &rows[..];
        let mut text = String::new();
        match self {
            Self::Table => {
                let cell = |row: &Value, field: &str| {
                    row.get(field)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned()
                };
                let mut lines = vec![heads.iter().map(|(_, head)| (*head).to_owned()).collect()];
                for row in rows {
                    lines.push(heads.iter().map(|(field, _)| cell(row, field)).collect());
                }
                text = human::columns(&lines);
            }
            Self::Json => {
                for row in rows {
                    text.push_str(&row.to_string());
                    text.push('\n');
                }
            }
            Self::Rows(template) => {
                for row in rows {
                    text.push_str(&template.render(row, true).map_err(wrong)?);
                    text.push('\n');
                }
            }
            Self::Columns(template) => {
                let head = |field: &str| {
                    let known = heads.iter().find(|(known, _)| *known == field);
                    known.map_or_else(|| field.to_uppercase(), |(_, head)| (*head).to_owned())
                };
                let mut lines: Vec<Vec<String>> =
                    vec![template.fields().into_iter().map(head).collect()];
                for row in rows {
                    let line = template.render(row, true).map_err(wrong)?;
                    lines.push(line.split('\t').map(str::to_owned).collect());
                }
                text = human::columns(&lines);
            }
        }
        Ok(text)
    }
}

/// A row without anything that could drive a terminal: a machine says what it likes.
fn harmless(row: &Value) -> Value {
    match row {
        Value::String(text) => Value::String(text.chars().filter(|c| !c.is_control()).collect()),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), harmless(value)))
            .collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn show(form: Option<&str>) -> String {
        let rows = [
            json!({"ID": "1", "Names": "web"}),
            json!({"ID": "22", "Names": "db"}),
        ];
        Form::read(form)
            .unwrap()
            .show(&rows, &[("ID", "CONTAINER ID"), ("Names", "NAMES")])
            .unwrap()
    }

    #[test]
    fn forms() {
        assert_eq!(
            show(None),
            "CONTAINER ID   NAMES\n1              web\n22             db\n"
        );
        assert_eq!(show(Some("{{.Names}}={{.ID}}")), "web=1\ndb=22\n");
        assert_eq!(
            show(Some("table {{.Names}}\\t{{.ID}}")),
            "NAMES   CONTAINER ID\nweb     1\ndb      22\n"
        );
        assert_eq!(show(Some("json")).lines().count(), 2);
        let odd = [json!({"ID": "a\u{1b}[2Jb\nc"})];
        assert_eq!(
            Form::read(Some("{{.ID}}"))
                .unwrap()
                .show(&odd, &[])
                .unwrap(),
            "a[2Jbc\n"
        );
        assert!(Form::read(Some("{{.ID")).is_err());
        assert!(
            Form::read(Some("{{.No}}"))
                .unwrap()
                .show(&[json!({})], &[])
                .is_err()
        );
    }
}
