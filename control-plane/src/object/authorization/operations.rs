//! What is asked, and what must hold of a request besides.

use tulle_api::v1;

use super::text::{read_grpc_method, read_host, read_method, read_path, read_value};
use super::{MAX_LIST, at_most, listed, read_list};
use crate::finding::Notes;
use crate::kinds::{PolicyCondition, PolicyOperation};
use crate::object::policy::read_ports;
use crate::object::route::check_name;

/// How many conditions a rule may have, and steps the way to a claim.
const MAX_CONDITIONS: usize = 16;
/// How many methods an operation may name.
const MAX_METHODS: usize = 32;

const HOST_HINT: &str = "such as `orders.example.com` or `*.example.com`, without a port";
const METHOD_HINT: &str = "such as `GET` or `POST`";
const PATH_HINT: &str = "`/a/b`, `/a/*`, `*/b`, `/a/{*}/b` or `/a/{**}`";
const GRPC_HINT: &str = "such as `shop.Orders/Get`, without a leading `/`";
const VALUE_HINT: &str = "the value, with `*` at its beginning or its end at most";

pub(super) fn read_operations(
    field: &str,
    written: Option<&[PolicyOperation]>,
    notes: &mut Notes,
) -> Vec<v1::AccessOperation> {
    let operations = listed(MAX_LIST, field, written, notes).iter().enumerate();
    let operations = operations.map(|(index, one)| read_operation(&format!("{field}[{index}]"), one, notes));
    operations.collect()
}

/// Ports are as they are written.
fn read_operation(at: &str, written: &PolicyOperation, notes: &mut Notes) -> v1::AccessOperation {
    if *written == PolicyOperation::default() {
        notes.refuse(
            at,
            "the operation says nothing, so it would be everything",
            "say what is asked, or leave `to` out",
        );
    }
    let ports = |field: &str, list: Option<&[i32]>, notes: &mut Notes| -> Vec<u32> {
        let field = format!("{at}.{field}");
        let list = listed(MAX_LIST, &field, list, notes);
        read_ports(&field, list, notes).into_iter().map(u32::from).collect()
    };
    let hosts = |field: &str, list: Option<&[String]>, notes: &mut Notes| -> Vec<v1::TextMatch> {
        read_list(MAX_LIST, &format!("{at}.{field}"), list, HOST_HINT, read_host, notes)
    };
    let methods = |field: &str, list: Option<&[String]>, notes: &mut Notes| -> Vec<String> {
        read_list(MAX_METHODS, &format!("{at}.{field}"), list, METHOD_HINT, read_method, notes)
    };
    let paths = |field: &str, list: Option<&[String]>, notes: &mut Notes| -> Vec<v1::PathMatch> {
        read_list(MAX_LIST, &format!("{at}.{field}"), list, PATH_HINT, read_path, notes)
    };
    let grpc = |field: &str, list: Option<&[String]>, notes: &mut Notes| -> Vec<String> {
        read_list(MAX_LIST, &format!("{at}.{field}"), list, GRPC_HINT, read_grpc_method, notes)
    };
    v1::AccessOperation {
        ports: ports("ports", written.ports.as_deref(), notes),
        not_ports: ports("notPorts", written.not_ports.as_deref(), notes),
        hosts: hosts("hosts", written.hosts.as_deref(), notes),
        not_hosts: hosts("notHosts", written.not_hosts.as_deref(), notes),
        methods: methods("methods", written.methods.as_deref(), notes),
        not_methods: methods("notMethods", written.not_methods.as_deref(), notes),
        paths: paths("paths", written.paths.as_deref(), notes),
        not_paths: paths("notPaths", written.not_paths.as_deref(), notes),
        grpc_methods: grpc("grpcMethods", written.grpc_methods.as_deref(), notes),
        not_grpc_methods: grpc("notGrpcMethods", written.not_grpc_methods.as_deref(), notes),
    }
}

pub(super) fn read_conditions(
    field: &str,
    written: &[PolicyCondition],
    notes: &mut Notes,
) -> Vec<v1::AccessCondition> {
    at_most(MAX_CONDITIONS, written.len(), field, notes);
    let conditions = written.iter().enumerate();
    conditions.filter_map(|(index, one)| read_condition(&format!("{field}[{index}]"), one, notes)).collect()
}

fn read_condition(at: &str, written: &PolicyCondition, notes: &mut Notes) -> Option<v1::AccessCondition> {
    use v1::access_condition::Of;

    let of = match (&written.header, &written.claim, &written.claim_path) {
        (Some(header), None, None) => {
            if !check_name(format!("{at}.header"), header, notes) {
                return None;
            }
            if header.eq_ignore_ascii_case("host") {
                notes.refuse(
                    format!("{at}.header"),
                    "as a header, another case, a port or a dot at its end makes it another host",
                    "write it in `to`, as `hosts`",
                );
                return None;
            }
            Of::Header(header.to_ascii_lowercase())
        }
        (None, Some(claim), None) => {
            let elements: Vec<String> = claim.split('.').map(str::to_owned).collect();
            Of::Claim(read_claim(&format!("{at}.claim"), elements, notes))
        }
        (None, None, Some(path)) => {
            let field = format!("{at}.claimPath");
            let elements = listed(MAX_CONDITIONS, &field, Some(path.as_slice()), notes).to_vec();
            Of::Claim(read_claim(&field, elements, notes))
        }
        _ => {
            notes.refuse(
                at,
                "exactly one of `header`, `claim` and `claimPath` says what the values are of",
                "write one of them, and the others as conditions of their own",
            );
            return None;
        }
    };
    let values = |field: &str, list: Option<&[String]>, notes: &mut Notes| -> Vec<v1::TextMatch> {
        read_list(MAX_LIST, &format!("{at}.{field}"), list, VALUE_HINT, read_value, notes)
    };
    Some(v1::AccessCondition {
        of: Some(of),
        values: values("values", written.values.as_deref(), notes),
        not_values: values("notValues", written.not_values.as_deref(), notes),
    })
}

fn read_claim(field: &str, elements: Vec<String>, notes: &mut Notes) -> v1::ClaimPath {
    if elements.iter().any(String::is_empty) {
        notes.refuse(
            field,
            "a step of the way to the claim is empty",
            "`a.b` is `b` within `a`; a name with a dot is written in `claimPath`",
        );
    }
    v1::ClaimPath { elements }
}
