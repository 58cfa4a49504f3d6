//! The terminal that a table is redrawn in, and durations as tables show them.
//!
//! Lines never wrap, but for the last drawing's: what is wider than the terminal is cut, so that the cursor finds the top of the table again. No
//! alternate screen: what was printed last stays when the program has ended.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

/// Milliseconds with three digits that count.
pub(crate) fn milliseconds(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1e3;
    match milliseconds {
        ..10.0 => format!("{milliseconds:.2} ms"),
        ..100.0 => format!("{milliseconds:.1} ms"),
        _ => format!("{milliseconds:.0} ms"),
    }
}

/// Standard output, redrawn in place where it is a terminal.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    /// Lines that the next drawing replaces.
    drawn: usize,
}

// === impl Screen ===

impl Screen {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), drawn: 0 }
    }

    /// Never redrawn, whatever it is.
    pub(crate) fn plain() -> Self {
        Self { terminal: false, drawn: 0 }
    }

    /// Whether drawings replace each other; where they do not, they should be few.
    pub(crate) fn is_live(&self) -> bool {
        self.terminal
    }

    /// Prints `lines` in place of what was drawn before.
    ///
    /// # Errors
    /// Those of standard output: the reader has gone, most likely.
    pub(crate) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let size = self.terminal.then(|| rustix::termios::tcgetwinsize(io::stdout()).ok()).flatten();
        // A terminal that does not say its size (0) is taken to be as wide as need be.
        let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 1);
        let height = size.map_or(usize::MAX, |size| usize::from(size.ws_row) - 1);
        let width = size.map_or(usize::MAX, |size| usize::from(size.ws_col));
        self.write(lines, width, height)
    }

    /// The last drawing: all of it, since none follows that would have to find its top.
    ///
    /// # Errors
    /// As [`Screen::draw`].
    pub(crate) fn finish(&mut self, lines: &[String]) -> io::Result<()> {
        self.write(lines, usize::MAX, usize::MAX)
    }

    fn write(&mut self, lines: &[String], width: usize, height: usize) -> io::Result<()> {
        let text = drawing(self.drawn, self.terminal, lines, width, height);
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        self.drawn = if self.terminal { lines.len().min(height) } else { 0 };
        Ok(())
    }
}

/// The text that replaces `drawn` lines by `lines`: up, then each line followed by "erase to its end", then what was
/// below erased. One write, so that nothing flickers.
fn drawing(drawn: usize, terminal: bool, lines: &[String], width: usize, height: usize) -> String {
    let mut text = String::new();
    if terminal && drawn > 0 {
        text.push_str(&format!("\x1b[{drawn}A\r"));
    }
    for line in lines.iter().take(height) {
        text.extend(line.chars().take(width));
        text.push_str(if terminal { "\x1b[K\n" } else { "\n" });
    }
    if terminal {
        text.push_str("\x1b[J");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_replaces_the_last_and_leaves_no_codes_in_a_file() {
        let lines = ["wide line".to_owned(), "x".to_owned(), "below".to_owned()];
        assert_eq!(drawing(0, true, &lines[..2], 4, 10), "wide\x1b[K\nx\x1b[K\n\x1b[J");
        assert_eq!(drawing(2, true, &lines, 80, 2), "\x1b[2A\rwide line\x1b[K\nx\x1b[K\n\x1b[J");
        assert_eq!(drawing(2, false, &lines[..2], usize::MAX, usize::MAX), "wide line\nx\n");
    }
}
