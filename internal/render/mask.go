package render

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Shorter values are not masked: masking them would make every log unreadable and
// protect nothing.
const (
	shortestSecret = 3
	// A line of a longer secret must be longer to be masked on its own,
	// because secrets that are whole files have lines such as "true".
	shortestLine = 8
)

// Masker replaces secret values by ***. The zero Masker has none. Printing a Masker
// does not show its values.
type Masker struct {
	// It is a function because package fmt prints what a pointer points to, and does
	// not call the String method of a Masker inside another type.
	table func() *maskTable
}

type maskTable struct {
	forms    []string
	replacer *strings.Replacer
}

// NewMasker makes a Masker of secret values. It masks each value of at least 3 bytes as
// it is, in base64, quoted for a shell, as JSON and as Go. It does not recognize a value
// that a template has changed further (cut, hashed, in upper case).
func NewMasker(secrets ...[]byte) Masker {
	var forms []string
	for _, secret := range secrets {
		forms = append(forms, formsOf(string(secret))...)
	}
	return newMasker(forms)
}

// Merge returns a Masker of the values of all.
func (m Masker) Merge(others ...Masker) Masker {
	var forms []string
	for _, masker := range append([]Masker{m}, others...) {
		if masker.table != nil {
			forms = append(forms, masker.table().forms...)
		}
	}
	return newMasker(forms)
}

// Mask replaces every known value in s by ***.
func (m Masker) Mask(s string) string {
	if m.table == nil {
		return s
	}
	return m.table().replacer.Replace(s)
}

// Tail masks text and returns at most the last limit bytes. cut means that the beginning
// of text is missing: Tail drops what may be the rest of a value that began there.
func (m Masker) Tail(text string, limit int, cut bool) string {
	if cut && m.table != nil {
		text = text[m.table().pastPart(text):]
	}
	text = strings.TrimSpace(m.Mask(text))
	return strings.ToValidUTF8(text[max(0, len(text)-limit):], "")
}

// pastPart returns a place in text behind everything that may be the rest of a value,
// and inside no value.
func (t *maskTable) pastPart(text string) int {
	past := min(len(t.forms[0])-1, len(text))
	for i := 0; i < past; i++ {
		for _, form := range t.forms {
			if strings.HasPrefix(text[i:], form) {
				past = max(past, i+len(form))
			}
		}
	}
	return past
}

// String keeps the values out of anything that prints a Masker.
func (m Masker) String() string { return "Masker" }

// GoString is String for %#v.
func (m Masker) GoString() string { return m.String() }

func newMasker(forms []string) Masker {
	if len(forms) == 0 {
		return Masker{}
	}
	slices.Sort(forms)
	forms = slices.Compact(forms)
	// The longest first, so that a value that contains another is masked as a whole.
	slices.SortStableFunc(forms, func(a, b string) int { return len(b) - len(a) })
	pairs := make([]string, 0, 2*len(forms))
	for _, form := range forms {
		pairs = append(pairs, form, "***")
	}
	table := &maskTable{forms: forms, replacer: strings.NewReplacer(pairs...)}
	return Masker{table: func() *maskTable { return table }}
}

// formsOf returns a secret in all the forms in which a log may show it.
func formsOf(secret string) []string {
	values := []string{secret}
	// The shell removes the last line break of a file, and logs are written by line.
	trimmed := strings.TrimSpace(secret)
	if trimmed != secret {
		values = append(values, trimmed)
	}
	if strings.Contains(trimmed, "\n") {
		for line := range strings.Lines(trimmed) {
			if line = strings.TrimSpace(line); len(line) >= shortestLine {
				values = append(values, line)
			}
		}
	}
	var forms []string
	for _, value := range values {
		if len(value) < shortestSecret {
			continue
		}
		bytes := []byte(value)
		forms = append(forms, value,
			base64.StdEncoding.EncodeToString(bytes),
			base64.RawStdEncoding.EncodeToString(bytes),
			base64.URLEncoding.EncodeToString(bytes),
			base64.RawURLEncoding.EncodeToString(bytes),
			// The two ways to write a single quote inside single quotes.
			strings.ReplaceAll(value, `'`, `'\''`),
			strings.ReplaceAll(value, `'`, `'"'"'`),
			shellDoubleQuotes.Replace(value),
			// What a template prints without `toString`.
			fmt.Sprint(bytes),
		)
		for _, text := range []string{asJSON(value), strconv.Quote(value)} {
			forms = append(forms, text[1:len(text)-1])
		}
		if html, err := json.Marshal(value); err == nil {
			forms = append(forms, string(html[1:len(html)-1]))
		}
	}
	return forms
}

var shellDoubleQuotes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`")

// asJSON quotes without the escapes for HTML, as most loggers do.
func asJSON(value string) string {
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return strconv.Quote(value)
	}
	return strings.TrimSuffix(out.String(), "\n")
}
