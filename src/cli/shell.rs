//! Words of a POSIX shell: a printed command can be pasted as it is, whatever the paths in it are called.

use std::path::Path;

/// `text` as one word: bare where nothing in it means something to a shell, else in single quotes.
pub fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_string(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// A path as one word. A relative path that begins with `-` would be taken for an option, so it gets `./` before it.
pub fn path(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.starts_with('-') {
        true => word(&format!("./{text}")),
        false => word(&text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `sh` makes of the words.
    fn read_by_a_shell(words: &str) -> String {
        let output = std::process::Command::new("sh").arg("-c").arg(format!("printf '<%s>' {words}")).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_shell_reads_each_word_as_it_was() {
        for text in [
            "runs/a-b_1.0",
            "due parole",
            "l'ora",
            "",
            "$HOME",
            "`id`",
            "a\\b",
            "\"x\"",
            "*",
            "città",
            "a\nb",
            "~",
            "!1",
        ] {
            assert_eq!(read_by_a_shell(&word(text)), format!("<{text}>"));
        }
        assert_eq!(word("runs/italian/adapter"), "runs/italian/adapter", "no quotes where none are needed");
    }

    #[test]
    fn a_path_is_never_an_option() {
        assert_eq!(read_by_a_shell(&path(Path::new("-n"))), "<./-n>");
        assert_eq!(path(Path::new("/a b/c")), "'/a b/c'");
    }
}
