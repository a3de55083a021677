//! Ollama's `Modelfile` beside a GGUF file: where the weights are, how messages are written, where an answer stops.
//!
//! `TEMPLATE` is Go's text/template; what is between `{{` and `}}` is program, all else is copied. Reference: Ollama's
//! `docs/modelfile.md` and `docs/template.md`.

use super::turns::Turns;

/// The text. `gguf` is the file's name in the same folder, `stops` the texts that end an answer.
pub fn text(gguf: &str, turns: Option<&Turns>, stops: &[String]) -> String {
    let mut lines = vec![format!("FROM ./{gguf}")];
    // A quotation that the format cannot hold leaves the choice to Ollama, which then goes by the GGUF file's own.
    if let Some(template) = turns.map(template).filter(|text| !text.contains("\"\"\"")) {
        lines.push(format!("TEMPLATE \"\"\"{template}\"\"\""));
    }
    // There are no escapes between quotation marks, only longer marks.
    let mark = |stop: &String| if stop.contains('"') { "\"\"\"" } else { "\"" };
    lines.extend(stops.iter().map(|stop| format!("PARAMETER stop {0}{stop}{0}", mark(stop))));
    lines.join("\n") + "\n"
}

/// The template in Go's language. BOS is not in it: llama.cpp puts it in front as the GGUF file says.
fn template(turns: &Turns) -> String {
    let around = |[before, behind]: &[String; 2], field: &str| {
        format!("{}{{{{ {field} }}}}{}", literal(before), literal(behind))
    };
    let Some(later) = &turns.later else {
        // One question at a time: the older form, which Ollama fills in with one exchange.
        return around(&turns.first, ".Prompt") + &around(&turns.answer, ".Response");
    };
    let first = around(&turns.first, "$m.Content");
    let with_system = match &turns.first_with_system {
        Some([before, between, behind]) => {
            format!("{}{{{{ $.System }}}}{}{{{{ $m.Content }}}}{}", literal(before), literal(between), literal(behind))
        }
        None => first.clone(),
    };
    [
        "{{ range $i, $m := .Messages }}{{ if eq $m.Role \"user\" }}{{ if eq $i 0 }}",
        &first,
        "{{ else if and (eq $i 1) $.System }}",
        &with_system,
        "{{ else }}",
        &around(later, "$m.Content"),
        "{{ end }}{{ else if eq $m.Role \"assistant\" }}",
        &around(&turns.answer, "$m.Content"),
        "{{ end }}{{ end }}",
    ]
    .concat()
}

/// Text that Go copies as it is.
fn literal(text: &str) -> String {
    text.replace("{{", "{{ \"{{\" }}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chatml() -> Turns {
        let user = ["<|im_start|>user\n".to_string(), "<|im_end|>\n<|im_start|>assistant\n".to_string()];
        let [before, behind] = user.clone();
        let system = "<|im_start|>system\n".to_string();
        Turns {
            bos: false,
            first: user.clone(),
            first_with_system: Some([system, format!("<|im_end|>\n{before}"), behind]),
            later: Some(user),
            answer: [String::new(), "<|im_end|>\n".into()],
        }
    }

    #[test]
    fn a_modelfile_names_weights_template_and_stops() {
        let text = text("m.gguf", Some(&chatml()), &["<|im_end|>".into(), "a\"b".into()]);
        let expected = "FROM ./m.gguf\n\
            TEMPLATE \"\"\"{{ range $i, $m := .Messages }}{{ if eq $m.Role \"user\" }}{{ if eq $i 0 }}<|im_start|>user\n\
            {{ $m.Content }}<|im_end|>\n<|im_start|>assistant\n{{ else if and (eq $i 1) $.System }}<|im_start|>system\n\
            {{ $.System }}<|im_end|>\n<|im_start|>user\n{{ $m.Content }}<|im_end|>\n<|im_start|>assistant\n\
            {{ else }}<|im_start|>user\n{{ $m.Content }}<|im_end|>\n<|im_start|>assistant\n\
            {{ end }}{{ else if eq $m.Role \"assistant\" }}{{ $m.Content }}<|im_end|>\n{{ end }}{{ end }}\"\"\"\n\
            PARAMETER stop \"<|im_end|>\"\nPARAMETER stop \"\"\"a\"b\"\"\"\n";
        assert_eq!(text, expected);
        assert_eq!(super::text("m.gguf", None, &["</s>".into()]), "FROM ./m.gguf\nPARAMETER stop \"</s>\"\n");
    }

    #[test]
    fn an_instruction_is_one_exchange_and_braces_are_text() {
        let turns = Turns {
            later: None,
            first_with_system: None,
            first: ["{{x}}: ".into(), "\nRisposta: ".into()],
            answer: [String::new(), "</s>".into()],
            bos: true,
        };
        assert_eq!(template(&turns), "{{ \"{{\" }}x}}: {{ .Prompt }}\nRisposta: {{ .Response }}</s>");
        let quoting = Turns { answer: ["\"\"\"".into(), String::new()], ..turns };
        assert_eq!(text("m.gguf", Some(&quoting), &[]), "FROM ./m.gguf\n");
    }
}
