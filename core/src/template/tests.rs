//! What docker's users write, and what nobody should.

use alloc::{string::ToString as _, vec};

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn value() -> Value {
    json!({
        "Id": "sha256:ab", "Size": 12, "Names": ["a:1", "b:2"], "None": null, "Empty": [],
        "Config": {"Labels": {"a.b": "c", "z": "y"}, "Cmd": null, "On": true},
    })
}

#[track_caller]
fn fill(template: &str) -> String {
    Template::parse(template)
        .unwrap()
        .render(&value(), false)
        .unwrap()
}

#[test]
fn what_people_write() {
    for (template, text) in [
        ("plain", "plain"),
        ("{{.Id}}", "sha256:ab"),
        ("{{ .Size }} bytes", "12 bytes"),
        ("{{.Names}}", "[a:1 b:2]"),
        ("{{.Config.Labels}}", "map[a.b:c z:y]"),
        ("{{json .Config.Labels}}", r#"{"a.b":"c","z":"y"}"#),
        (
            "{{json .Config.Cmd}} {{.None}} {{.Other}}",
            "null <no value> <no value>",
        ),
        ("{{index .Config.Labels \"a.b\"}}", "c"),
        ("{{index .Config.Labels \"no\"}}|", "|"),
        ("{{index .Names 1}}", "b:2"),
        ("{{range .Names}}{{.}};{{end}}", "a:1;b:2;"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{range .Names}}{{$.Id}} {{end}}", "sha256:ab sha256:ab "),
        ("{{if .Config.On}}yes{{else}}no{{end}}", "yes"),
        ("{{if .None}}1{{else if .Empty}}2{{else}}3{{end}}", "3"),
        ("{{if and .Id (not .None)}}both{{end}}", "both"),
        ("{{if eq .Size 12}}twelve{{end}}", "twelve"),
        ("{{with .Config}}{{.On}}{{end}}", "true"),
        ("{{join .Names \", \"}}", "a:1, b:2"),
        ("{{.Id | upper | printf \"%s!\"}}", "SHA256:AB!"),
        ("{{index (split .Id \":\") 1}}", "ab"),
        ("{{len .Names}}{{/* note */}}", "2"),
        ("a  {{- .Size -}}  b", "a12b"),
        ("{{println .Size `x`}}", "12 x\n"),
        ("{{\"}}\"}}", "}}"),
        ("{{(index .Names 0)}} {{title \"word\"}}", "a:1 Word"),
    ] {
        assert_eq!(fill(template), text, "{template}");
    }
}

#[test]
fn mistakes_are_told_before_anything_is_done() {
    for (template, word) in [
        ("{{.Id", "without its }}"),
        ("{{end}}", "without a block"),
        ("{{if .Id}}x", "without its {{end}}"),
        ("{{Id}}", "begin with a dot"),
        ("{{}}", "without content"),
        ("{{.Id | .Size}}", "function"),
        ("{{.Id .Size}}", "no arguments"),
        ("{{else}}", "without a block"),
        ("{{(.Id}}", "without its )"),
    ] {
        let error = Template::parse(template).unwrap_err().to_string();
        assert!(error.contains(word), "{template}: {error}");
    }
    for (template, word) in [
        ("{{.Size.X}}", "has no field"),
        ("{{range .Size}}{{end}}", "range"),
        ("{{upper .Names}}", "upper"),
        ("{{index .Names 7}}", "no item 7"),
        ("{{printf \"%s\"}}", "too few"),
    ] {
        let template = Template::parse(template).unwrap();
        let error = template.render(&value(), false).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let strict = Template::parse("{{.Idd}}").unwrap().render(&value(), true);
    assert!(
        strict
            .unwrap_err()
            .to_string()
            .contains("Config, Empty, Id")
    );
}

#[test]
fn fields_are_told() {
    let template = Template::parse("{{.ID}}\t{{upper .Tag}}{{if .Size}}{{end}}").unwrap();
    assert_eq!(template.fields(), ["ID", "Tag", "Size"]);
}

proptest! {
    #[test]
    fn never_panics(text in "[ -~]{0,60}") {
        if let Ok(template) = Template::parse(&text) {
            let _ = template.render(&value(), false);
        }
    }

    #[test]
    fn made_of_real_parts(parts in proptest::collection::vec(prop_oneof![
        Just("{{"), Just("}}"), Just("if "), Just("range "), Just(".Names"), Just("else"),
        Just("end"), Just("(("), Just(")"), Just("|"), Just("json "), Just("\""), Just("-"),
    ], 0..20)) {
        if let Ok(template) = Template::parse(&parts.concat()) {
            let _ = template.render(&value(), false);
        }
    }

    #[test]
    fn text_without_actions_stays(text in "[a-z }\n]{0,40}") {
        prop_assert_eq!(fill(&text), text);
    }
}
