//! The webhook: whether the API server reaches it, and believes it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tulle_certs::serving::{split_pem, validity_of_pem};
use tulle_control_plane::inject::keys;

use super::super::seen::{Seen, Trial, list, name, text};
use super::{Judged, error, ok, parts, warning};
use crate::check::count;

/// It is renewed at two thirds of a year: with less than this left nobody renews it.
const RENEWED_BEFORE: Duration = Duration::from_secs(30 * 86_400);

pub(crate) fn reachable(seen: &Seen) -> Judged {
    let Some(configuration) = configuration(seen)? else {
        let message = format!("there is no MutatingWebhookConfiguration {}: no pod gets a proxy", keys::NAME);
        return error(message).hint("install what is missing: `tulle upgrade`").some();
    };
    let elsewhere = list(configuration, "/webhooks")
        .iter()
        .find(|webhook| text(webhook, "/clientConfig/service/namespace") != seen.namespace);
    if let Some(webhook) = elsewhere {
        let namespace = text(webhook, "/clientConfig/service/namespace");
        let message = format!(
            "{} is called in the namespace `{namespace}`, and not in {}",
            text(webhook, "/name"),
            seen.namespace
        );
        return error(message)
            .hint("say --namespace where the control plane is, or install it only once")
            .some();
    }
    let (reached, unread) = parts(&seen.hooks);
    match unread {
        // A Pod that got its proxy is proof enough.
        Some(_) if seen.trial == Ok(Trial::Injected) && reached.is_empty() => {
            ok("the API server reaches one that answers").some()
        }
        Some((_, unread)) if matches!(unread, super::Unread::Forbidden(_)) => Err(unread.clone()),
        Some((number, unread)) => {
            let message = format!(
                "the API server does not reach {number} of {}: {unread}",
                count(seen.hooks.len(), "replica")
            );
            if reached.is_empty() { error(message).some() } else { warning(message).some() }
        }
        None if reached.is_empty() => Ok(None),
        None => ok(format!("the API server reaches {}", count(reached.len(), "replica"))).some(),
    }
}

pub(crate) fn trusted(seen: &Seen) -> Judged {
    let Some(configuration) = configuration(seen)? else { return Ok(None) };
    let webhooks = list(configuration, "/webhooks");
    for webhook in webhooks {
        let name = text(webhook, "/name");
        match soonest(text(webhook, "/clientConfig/caBundle")) {
            Err(why) => return error(format!("the caBundle of {name} {why}")).some(),
            Ok(until) if until <= seen.now => {
                return error(format!("the caBundle of {name} has expired")).some();
            }
            Ok(until) if until < seen.now + RENEWED_BEFORE => {
                let days = until.duration_since(seen.now).unwrap_or_default().as_secs() / 86_400;
                let message = format!(
                    "the caBundle of {name} expires in {days} days, and should have been renewed long ago"
                );
                return warning(message).some();
            }
            Ok(_) => {}
        }
    }
    match seen.trial.as_ref() {
        Ok(Trial::Injected) => ok("the API server has a pod injected by it").some(),
        Ok(Trial::Left) => {
            let message = "a pod that asks for a proxy would be made without one: the API server does not reach the webhook, or does not believe it";
            error(message).some()
        }
        Ok(Trial::Refused(why)) if is_about_us(why) && !why.contains("denied the request") => {
            error(format!("the API server cannot call it: {why}")).some()
        }
        // Its own refusal came by way of it.
        Ok(Trial::Refused(why)) if is_about_us(why) => ok("the API server obeys it").some(),
        Ok(Trial::Refused(why)) => {
            warning(format!("could not be tried, since no pod can be made: {why}")).some()
        }
        Err(super::Unread::NotAsked) => Ok(None),
        Err(unread) => Err(unread.clone()),
    }
}

fn is_about_us(why: &str) -> bool {
    why.contains("inject.tulle.dev")
}

fn configuration(seen: &Seen) -> Result<Option<&Value>, super::Unread> {
    Ok(seen.webhooks.as_ref()?.iter().find(|configuration| name(configuration) == keys::NAME))
}

/// Until when the newest certificate of a `caBundle` is good.
fn soonest(bundle: &str) -> Result<std::time::SystemTime, String> {
    if bundle.is_empty() {
        return Err("is empty: the control plane has not written it yet".to_owned());
    }
    let pem = STANDARD.decode(bundle).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let certificates =
        split_pem(&pem.unwrap_or_default()).map_err(|error| format!("cannot be read: {error}"))?;
    let until = certificates.iter().filter_map(|one| Some(validity_of_pem(one).ok()?.1));
    until.max().ok_or_else(|| "has no certificate".to_owned())
}
