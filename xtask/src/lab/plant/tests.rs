//! Plants as scenario files write them.

use super::*;

#[derive(Deserialize)]
struct File {
    fault: Vec<Plant>,
}

#[test]
fn plants_are_data() {
    let text = r#"
        fault = [
            { plant = "node-delay", node = "node1", ms = 5 },
            { plant = "node-delay", node = "node1", ms = 5, to = "100.115.37.81" },
            { plant = "wire-delay", between = ["node1", "node2"], ms = 5, direction = "there" },
            { plant = "wire-drop", node = "node1", way = "to", icmp = "echo-request" },
            { plant = "policy-drop", pod = "bb1" },
        ]
    "#;
    let file: File = toml::from_str(text).unwrap();
    assert_eq!(file.fault.len(), 5);
    assert_eq!(file.fault[0], Plant::NodeDelay { node: "node1".to_owned(), ms: 5, to: None });
    assert_eq!(file.fault[3], Plant::WireDrop { node: "node1".to_owned(), way: Way::To, icmp: Echo::EchoRequest });
}

#[test]
fn a_plant_with_an_unknown_field_is_refused() {
    let text = r#"fault = [{ plant = "policy-drop", pod = "bb1", ms = 5 }]"#;
    let error = toml::from_str::<File>(text).err().unwrap().to_string();
    assert!(error.contains("ms"), "{error}");
}

#[test]
fn a_rule_is_deleted_by_what_it_says() {
    assert_eq!(deletion(&words("-I chain 4 -j DROP")), words("-D chain -j DROP"));
    assert_eq!(deletion(&words("-t mangle -I FORWARD -j DROP")), words("-t mangle -D FORWARD -j DROP"));
}

#[test]
fn words_in_quotes_are_one() {
    assert_eq!(quoted("-I FORWARD -m comment --comment \"a b\" -j DROP")[4..], ["--comment", "a b", "-j", "DROP"]);
    assert_eq!(deletion(&quoted("-A INPUT -j DROP")), words("-D INPUT -j DROP"));
}

#[test]
fn numbers_differ() {
    assert_ne!(next_number(), next_number());
}

#[test]
fn tables_come_before_their_chains() {
    let listed = "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\ntable ip6 x {\n}\n";
    assert_eq!(fault::chains(listed), ["ip filter", "ip filter INPUT", "ip6 x"]);
}

#[test]
fn a_table_that_is_left_is_empty() {
    let empty =
        "table ip mangle {\n\tchain FORWARD {\n\t\ttype filter hook forward priority mangle; policy accept;\n\t}\n}\n";
    assert!(!fault::has_rules(empty));
    assert!(fault::has_rules(&empty.replace("\t\ttype", "\t\tcounter packets 0 bytes 0 drop\n\t\ttype")));
}
