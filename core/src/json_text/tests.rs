use proptest::prelude::*;
use serde_json::json;

use super::Step::{At, Key};
use super::*;

#[test]
fn members_are_set_where_they_are_or_behind_the_last() {
    let compact = r#"{"z":1.50,"a":{"b":[1,2]},"n":null,"e":{}}"#;
    for (path, value, expected) in [
        (
            &[Key("z")][..],
            json!(2),
            r#"{"z":2,"a":{"b":[1,2]},"n":null,"e":{}}"#,
        ),
        (
            &[Key("a"), Key("c")],
            json!("x"),
            r#"{"z":1.50,"a":{"b":[1,2],"c":"x"},"n":null,"e":{}}"#,
        ),
        (
            &[Key("a"), Key("b"), At(1)],
            json!(3),
            r#"{"z":1.50,"a":{"b":[1,3]},"n":null,"e":{}}"#,
        ),
        (
            &[Key("n"), Key("x"), Key("y")],
            json!(true),
            r#"{"z":1.50,"a":{"b":[1,2]},"n":{"x":{"y":true}},"e":{}}"#,
        ),
        (
            &[Key("e"), Key("k")],
            json!([1]),
            r#"{"z":1.50,"a":{"b":[1,2]},"n":null,"e":{"k":[1]}}"#,
        ),
        (
            &[Key("new"), Key("k")],
            json!(0),
            r#"{"z":1.50,"a":{"b":[1,2]},"n":null,"e":{},"new":{"k":0}}"#,
        ),
    ] {
        assert_eq!(set(compact, path, &value).unwrap(), expected);
    }
}

#[test]
fn the_layout_of_the_document_is_kept() {
    let wide = "{\n    \"log-level\": \"warn\",\n    \"list\": [\n        \"a\"\n    ],\n    \"e\": {}\n}\n";
    assert_eq!(
        push(wide, &[Key("list")], &json!("b")).unwrap(),
        "{\n    \"log-level\": \"warn\",\n    \"list\": [\n        \"a\",\n        \"b\"\n    ],\n    \"e\": {}\n}\n"
    );
    assert_eq!(
        push(wide, &[Key("more")], &json!("b")).unwrap(),
        "{\n    \"log-level\": \"warn\",\n    \"list\": [\n        \"a\"\n    ],\n    \"e\": {},\n    \"more\": [\n        \"b\"\n    ]\n}\n"
    );
    assert_eq!(
        set(wide, &[Key("e"), Key("k")], &json!(1)).unwrap(),
        "{\n    \"log-level\": \"warn\",\n    \"list\": [\n        \"a\"\n    ],\n    \"e\": {\n        \"k\": 1\n    }\n}\n"
    );
    assert_eq!(
        set(r#"{"a": 1}"#, &[Key("b")], &json!(2)).unwrap(),
        r#"{"a": 1, "b": 2}"#
    );
    assert_eq!(set("{}\n", &[Key("b")], &json!(2)).unwrap(), "{\"b\": 2}\n");
    assert_eq!(
        set("{\n}\n", &[Key("b")], &json!([2])).unwrap(),
        "{\n  \"b\": [\n    2\n  ]\n}\n"
    );
}

#[test]
fn members_are_removed_with_their_comma() {
    for (text, expected) in [
        (r#"{"a":1,"b":2,"c":3}"#, r#"{"a":1,"c":3}"#),
        (r#"{"b":2,"c":3}"#, r#"{"c":3}"#),
        (r#"{"a":1, "b":2}"#, r#"{"a":1}"#),
        (r#"{ "b":2 }"#, "{  }"),
        (r#"{"a":1}"#, r#"{"a":1}"#),
    ] {
        assert_eq!(remove(text, &[Key("b")]).unwrap(), expected);
    }
}

#[test]
fn what_cannot_be_edited_is_said() {
    let error = |result: Result<String, _>| result.unwrap_err();
    assert!(matches!(
        error(set("{", &[], &json!(1))),
        JsonTextError::Malformed(_)
    ));
    assert_eq!(
        error(set(r#"{"a":1,"a":2}"#, &[Key("a")], &json!(1))),
        JsonTextError::Duplicate("a".into())
    );
    assert!(matches!(
        error(set(r#"{"a":"text"}"#, &[Key("a"), Key("b")], &json!(1))),
        JsonTextError::Type { .. }
    ));
    assert!(matches!(
        error(push(r#"{"a":{}}"#, &[Key("a")], &json!(1))),
        JsonTextError::Type { .. }
    ));
    assert!(matches!(
        error(set("[1]", &[At(3)], &json!(1))),
        JsonTextError::Missing(_)
    ));
    assert_eq!(get(r#"{"a":null}"#, &[Key("a"), Key("c")]), Ok(None));
    assert_eq!(get(r#"{"a":{"b":1}}"#, &[Key("a"), Key("c")]), Ok(None));
    assert_eq!(
        get(r#"{"a":{"b": [1, 2] }}"#, &[Key("a"), Key("b")]),
        Ok(Some("[1, 2]"))
    );
}

#[test]
fn deep_documents_are_refused_not_overflowed() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(get(&deep, &[]).is_err());
}

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[\\PC\n\"\\\\]{0,6}".prop_map(Value::from),
    ];
    let tree = leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d]{1,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    prop::collection::btree_map("[a-d]{1,2}", tree, 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

proptest! {
    #[test]
    fn edits_say_the_same_as_edits_of_the_value(
        document in documents(), key in "[a-e]{1,2}", inner in "[a-e]{1,2}", value in documents(), wide: bool,
    ) {
        let text = if wide { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
        let text = text.unwrap();
        let edited = set(&text, &[Key(&key), Key(&inner)], &value);
        let mut expected = document.clone();
        let place = &mut expected[&key];
        if place.is_object() || place.is_null() {
            place[&inner] = value.clone();
            let edited = edited.unwrap();
            prop_assert_eq!(serde_json::from_str::<Value>(&edited).unwrap(), expected);
            // A second time changes nothing that it means, and it can be taken back.
            let removed = remove(&edited, &[Key(&key), Key(&inner)]).unwrap();
            let removed: Value = serde_json::from_str(&removed).unwrap();
            prop_assert!(removed[&key].get(&inner).is_none());
        } else {
            prop_assert!(edited.is_err());
        }
    }

    #[test]
    fn any_text_gives_an_answer(text in "[\\[\\]{}:,\"\\\\a1 \n]{0,40}", key in ".{0,3}") {
        let _ = set(&text, &[Key(&key)], &json!(1));
        let _ = push(&text, &[Key(&key), At(0)], &json!(1));
        let _ = remove(&text, &[Key(&key)]);
    }
}
