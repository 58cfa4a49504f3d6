//! Virtual IPs that follow from names.

use super::*;

const PLAIN: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: plain}\nspec: {ports: [{port: 80}]}\n";

fn addresses(model: &Model, name: &str) -> Vec<String> {
    get::<v1::Service>(model, name).unwrap().addresses
}

#[test]
fn a_service_without_an_address_has_one_by_its_name_and_is_found_there() {
    let model = model(PLAIN);
    let given = addresses(&model, "default/plain");
    assert_eq!(given.len(), 2, "IPv4 and IPv6: {given:?}");
    for ip in &given {
        let address: v1::Address = get(&model, ip).unwrap();
        let service = v1::ObjectName { namespace: "default".to_owned(), name: "plain".to_owned() };
        assert_eq!(address.target, Some(v1::address::Target::Service(service)));
    }
}

#[test]
fn what_is_written_counts_and_a_headless_service_has_none() {
    let written = PLAIN.replace("spec: {", "spec: {clusterIP: 10.9.9.9, ");
    assert_eq!(addresses(&model(&written), "default/plain"), ["10.9.9.9"]);
    let headless = PLAIN.replace("spec: {", "spec: {clusterIP: None, ");
    assert_eq!(addresses(&model(&headless), "default/plain"), Vec::<String>::new());
}

#[test]
fn an_address_comes_and_goes_with_its_service() {
    let (mut index, _) = index(PLAIN);
    let first = Model::build(&index, Settings::default());
    let given = addresses(&first, "default/plain");
    let change = |index: &mut Index, model: &Model, text: &str| {
        index.change(read_text(text).changes);
        let dirty = index.take_dirty();
        model.next(index, &dirty)
    };
    // It is written now: the derived ones lead nowhere, in the incremental model as in a new one.
    let written = PLAIN.replace("spec: {", "spec: {clusterIP: 10.9.9.9, ");
    let second = change(&mut index, &first, &written);
    assert_eq!(addresses(&second, "default/plain"), ["10.9.9.9"]);
    assert!(given.iter().all(|ip| get::<v1::Address>(&second, ip).is_none()));
    assert_eq!(second, Model::build(&index, Settings::default()));
    let third = change(&mut index, &second, PLAIN);
    assert_eq!(third, first);
}
