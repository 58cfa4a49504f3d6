//! What is to be said of what was read: a function for each check of the table, none of which reads anything itself.
//!
//! A part that could not be read makes those checks say so that need it, and no others. A check that has nothing to look at, since something
//! that it builds on is missing, says nothing: the other one does.

pub(super) mod control_plane;
pub(super) mod install;
pub(super) mod mesh;
pub(super) mod platform;
pub(super) mod webhook;

use serde::Serialize;

use super::catalogue::{CHECKS, Entry};
use super::seen::{Part, Seen, Unread};

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    /// Something is probably not as it was meant, or could not be looked at.
    Warning,
    /// Something that is asked for is not done.
    Error,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    /// What it looks at.
    pub(super) meaning: &'static str,
    pub(super) status: Level,
    pub(super) message: String,
    /// What it is about, one by one, as far as a person reads it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) details: Vec<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
    /// What explains it.
    pub(super) link: String,
}

/// What a function says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    level: Level,
    message: String,
    details: Vec<String>,
    /// In place of the table's.
    hint: Option<String>,
}

/// `None`: there is nothing to look at.
pub(super) type Judged = Result<Option<Verdict>, Unread>;

/// What one check lists at most.
const MOST: usize = 10;

/// Every check of this stage, in the order of the table.
pub(super) fn judge(seen: &Seen) -> Vec<Check> {
    let mut checks = Vec::new();
    for entry in CHECKS.iter().filter(|entry| entry.stage.is_none_or(|stage| stage == seen.stage)) {
        let Some(verdict) = (entry.judge)(seen).unwrap_or_else(|unread| of_unread(&unread)) else { continue };
        checks.push(finish(entry, verdict));
        // Without an answer of the API server all others would say the same.
        if matches!(seen.version, Err(Unread::Failed(_))) {
            break;
        }
    }
    checks
}

fn of_unread(unread: &Unread) -> Option<Verdict> {
    match unread {
        Unread::NotAsked => None,
        Unread::Forbidden(needs) => {
            let hint = format!("ask for the right to `{needs}`, or let somebody look who has it");
            Some(warning(format!("not looked at: {unread}")).hint(hint))
        }
        Unread::Failed(why) => Some(error(why.clone())),
    }
}

fn finish(entry: &Entry, verdict: Verdict) -> Check {
    let Verdict { level, message, mut details, hint } = verdict;
    if details.len() > MOST {
        let more = details.len() - MOST;
        details.truncate(MOST);
        details.push(format!("and {more} more"));
    }
    let remedy = (!entry.remedy.is_empty()).then(|| entry.remedy.to_owned());
    let hint = if level == Level::Ok { None } else { hint.or(remedy) };
    let link = format!("docs/reference/checks.md#{}", entry.name);
    Check { name: entry.name, meaning: entry.meaning, status: level, message, details, hint, link }
}

fn ok(message: impl Into<String>) -> Verdict {
    Verdict { level: Level::Ok, message: message.into(), details: Vec::new(), hint: None }
}

fn warning(message: impl Into<String>) -> Verdict {
    Verdict { level: Level::Warning, ..ok(message) }
}

fn error(message: impl Into<String>) -> Verdict {
    Verdict { level: Level::Error, ..ok(message) }
}

/// Each by its name.
pub(super) type Named<'a, T> = Vec<(&'a str, &'a T)>;

/// What was read of each of several, and of how many it could not be read, with the first reason.
fn parts<'a, T>(
    all: impl IntoIterator<Item = (&'a String, &'a Part<T>)>,
) -> (Named<'a, T>, Option<(usize, &'a Unread)>)
where
    T: 'a,
{
    let (mut read, mut missing, mut first) = (Vec::new(), 0, None);
    for (name, part) in all {
        match part {
            Ok(one) => read.push((name.as_str(), one)),
            Err(unread) => {
                missing += 1;
                first.get_or_insert(unread);
            }
        }
    }
    (read, first.map(|unread| (missing, unread)))
}

// === impl Verdict ===

impl Verdict {
    fn details(self, details: Vec<String>) -> Self {
        Self { details, ..self }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    fn some(self) -> Judged {
        Ok(Some(self))
    }
}

#[cfg(test)]
mod tests;
