//! YAML and JSON as text: documents, positions, aliases.

use super::super::yaml;
use super::*;

#[test]
fn json_that_breaks_at_the_end_of_a_line_has_a_column_that_an_editor_knows() {
    let (_, found) = World::new(&[("conf/a.json", "{\"a\": \"b\n\"}")]);
    assert_eq!((found[0].line, found[0].column), (Some(2), Some(1)), "{found:?}");
}

#[test]
fn json_is_read_with_its_escapes_and_positions() {
    let text = "{\n \"apiVersion\": \"v1\", \"kind\": \"Service\",\n \"metadata\": {\"name\": \"web\", \"annotations\": {\"a\": \"\\ud83d\\ude00\"}},\n \"spec\": {\"ports\": [\n  {\"port\": 0}]}\n}";
    let (mut world, found) = World::new(&[("conf/a.json", text)]);
    assert_eq!(lines(&found), [("spec.ports[0].port", 5)]);
    assert_eq!(world.write("conf/a.json", &text.replace("\"port\": 0", "\"port\": 7")), []);
    assert_eq!(world.port("web"), Some(7));
    let found = world.write("conf/a.json", "{\n\"a\": }");
    assert_eq!(lines(&found), [("", 2)]);
    assert_eq!(world.port("web"), Some(7));
}

#[test]
fn documents_are_split_where_yaml_splits_them() {
    let cases: &[(&str, &[u32])] = &[
        ("a: 1\n---\nb: 2\n", &[1, 2]),
        ("---\na: 1\n--- # c\nb: 2", &[1, 3]),
        ("%YAML 1.2\n---\na: 1\n", &[1]),
        ("a: |\n  ---\n  text\n---x: 1\n", &[1]),
        ("a: 1\n...\n---\nb: 2\n", &[1, 3]),
        ("a: 1\r\n---\r\nb: 2\r\n", &[1, 2]),
        ("a: 1\r---\rb: 2\r...\r\r", &[1, 2, 5]),
        ("", &[1]),
    ];
    for (text, first_lines) in cases {
        let chunks = yaml::split(text);
        let seen: Vec<u32> = chunks.iter().map(|chunk| chunk.first_line).collect();
        assert_eq!(seen, *first_lines, "{text:?}");
        let whole: String = chunks.iter().map(|chunk| chunk.text).collect();
        assert_eq!(whole, *text);
    }
}

#[test]
fn merge_keys_fill_in_what_is_not_said() {
    let text = "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n";
    let document = yaml::parse(yaml::split(text)[0]).unwrap().unwrap();
    assert_eq!(document.value["more"], serde_json::json!({"x": 1, "y": 3}));
}

#[test]
fn aliases_that_multiply_and_deep_nesting_are_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = level - 1;
        let items = vec![format!("*a{before}"); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    let broken = yaml::parse(yaml::split(&bomb)[0]).unwrap_err();
    assert!(broken.message.contains("too large"), "{}", broken.message);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(yaml::parse(yaml::split(&deep)[0]).is_err());
    // What a key is long counts as well, once for each alias and once for each place below it.
    let key = "k".repeat(1 << 18);
    let aliases = format!("a: &a\n  ? {key}\n  : 1\nb: [{}]", "*a,".repeat(1000));
    let nested = format!("? {key}\n: [{}]", "1,".repeat(1000));
    for text in [aliases, nested] {
        let broken = yaml::parse(yaml::Chunk { first_line: 1, text: &text }).unwrap_err();
        assert!(broken.message.contains("too large"), "{}", broken.message);
    }
}
