//! What is told of arguments: of a long one its beginning. A message is no place for all of it.

use std::ffi::OsString;

/// From so many bytes on an argument is long …
const LONG: usize = 200;
/// … and a word of a message, whatever it is: part of an argument, say.
const LONG_WORD: usize = 1_000;
/// Characters of either that are shown.
const SHOWN: usize = 60;

/// The message, with long arguments cut wherever it has them.
pub(crate) fn brief(message: &str, arguments: impl Iterator<Item = OsString>) -> String {
    let mut message = message.to_owned();
    for argument in arguments {
        let argument = argument.to_string_lossy();
        // Of `--flag=value`, too.
        let value = argument.split_once('=').map(|(_, value)| value);
        for long in [Some(&*argument), value].into_iter().flatten().filter(|text| text.len() > LONG) {
            message = message.replace(long, &beginning(long, SHOWN));
        }
    }
    let words = message.split_inclusive(char::is_whitespace);
    let cut = |word: &str| match word.len() > LONG_WORD {
        true => beginning(word.trim_end(), SHOWN) + &word[word.trim_end().len()..],
        false => word.to_owned(),
    };
    words.map(cut).collect()
}

/// At most so many characters of a text.
pub(crate) fn beginning(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_argument_the_beginning_is_told() {
        let long = "ä ".repeat(300);
        let told = |argument: String, message: &str| brief(message, [OsString::from(argument)].into_iter());
        let said = told(format!("--for={long}"), &format!("`{long}` is no duration"));
        assert!(said.ends_with("…` is no duration") && said.chars().count() < 100, "{said}");
        let word = "x".repeat(2_000);
        let said = told(String::new(), &format!("no file {word} is here"));
        assert_eq!(said, format!("no file {}… is here", "x".repeat(SHOWN)));
        assert_eq!(told("short".to_owned(), "`short` is no duration"), "`short` is no duration");
    }
}
