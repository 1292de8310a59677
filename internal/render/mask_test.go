package render

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMask(t *testing.T) {
	const value = "a'b\"c$d<e\\f"
	asJSON, err := json.Marshal(value)
	require.NoError(t, err)
	masker := NewMasker([]byte(value), []byte("top"), []byte("top-secret\n"), []byte("ab"), nil)
	for name, test := range map[string]struct{ text, want string }{
		"plain":                  {"x " + value + " y", "x *** y"},
		"twice":                  {value + value, "******"},
		"single quotes":          {`'a'\''b"c$d<e\f'`, `'***'`},
		"other single quotes":    {`'a'"'"'b"c$d<e\f'`, `'***'`},
		"double quotes":          {`"a'b\"c\$d<e\\f"`, `"***"`},
		"JSON":                   {string(asJSON), `"***"`},
		"JSON without escapes":   {`"a'b\"c$d<e\\f"`, `"***"`},
		"Go":                     {strconv.Quote(value), `"***"`},
		"bytes":                  {fmt.Sprint([]byte(value)), "***"},
		"base64":                 {base64.StdEncoding.EncodeToString([]byte(value)), "***"},
		"base64 without padding": {base64.RawStdEncoding.EncodeToString([]byte(value)), "***"},
		"the longer one":         {"top-secret", "***"},
		"its beginning":          {"top-hat", "***-hat"},
		"with its line break":    {"top-secret\nx", "***x"},
		"too short":              {"ab", "ab"},
		"nothing":                {"", ""},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, test.want, masker.Mask(test.text)) })
	}
}

func TestMaskLinesOfFiles(t *testing.T) {
	masker := NewMasker([]byte("[client]\nssl = true\npassword = hunter2\ntrue\n"))
	require.Equal(t, "cat: *** true", masker.Mask("cat: password = hunter2 true"))
}

func TestMaskersMerge(t *testing.T) {
	var none Masker
	require.Equal(t, "one two", none.Mask("one two"))
	require.Equal(t, "one two", none.Merge(none).Mask("one two"))
	both := none.Merge(NewMasker([]byte("one")), NewMasker([]byte("two")), none)
	require.Equal(t, "*** ***", both.Mask("one two"))
}

func TestMaskersDoNotPrintSecrets(t *testing.T) {
	holder := struct{ m Masker }{NewMasker([]byte("hunter2"))}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		require.NotContains(t, fmt.Sprintf(verb, holder), "hunter2")
		require.NotContains(t, fmt.Sprintf(verb, holder.m), "hunter2")
		require.NotContains(t, fmt.Sprintf(verb, &holder), "hunter2")
	}
}

// What is cut off a text may have been the beginning of a value, so neither a value
// nor a part of one is left, in whatever form it was printed.
func TestTailShowsNoPartOfAValue(t *testing.T) {
	const value = `s3cr"et-of-the-$hop`
	quoted, err := json.Marshal(value)
	require.NoError(t, err)
	masker := NewMasker([]byte(value), []byte("hop-is-another"))
	for _, form := range []string{
		value, string(quoted), base64.StdEncoding.EncodeToString([]byte(value)), base64.RawURLEncoding.EncodeToString([]byte(value)),
		fmt.Sprint([]byte(value)), `'s3cr"et-of-the-$hop'`, `"s3cr\"et-of-the-\$hop"`, value + "-is-another",
	} {
		text := "before " + form + " " + form + " the end"
		for at := range text {
			kept := text[at:]
			for limit := range len(kept) {
				shown := masker.Tail(kept, limit, at > 0)
				for _, word := range strings.FieldsFunc(shown, func(r rune) bool { return r == ' ' || r == '*' }) {
					require.Contains(t, "before the end \"' [ ] -is-another", word, "%q cut at %d", form, at)
				}
			}
		}
	}
	require.Equal(t, "the end", masker.Tail("xx the end", 7, false))
	require.Equal(t, "xx the end", Masker{}.Tail("xx the end\n", 100, true))
	require.Empty(t, NewMasker([]byte(strings.Repeat("x", 100))).Tail("xxx", 7, true), "all of it can be a part of the value")
}
