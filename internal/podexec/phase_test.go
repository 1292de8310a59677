package podexec

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOutputsAreBounded(t *testing.T) {
	var log strings.Builder
	for i := range 30 {
		fmt.Fprintf(&log, "###Phase-output###: {\"key\": \"k%d\", \"value\": %q}\n", i, strings.Repeat("x", 100_000))
	}
	_, err := ParseOutputs(strings.NewReader(log.String()))
	require.EqualError(t, err, "line 11: the outputs are longer than 1048576 bytes")
}

func TestParseOutputs(t *testing.T) {
	for name, test := range map[string]struct {
		printed string
		want    map[string]any
		err     string
	}{
		"none":          {"hello\nworld", map[string]any{}, ""},
		"empty":         {"", map[string]any{}, ""},
		"in a line":     {"hello ###Phase-output###: {\"key\": \"a\", \"value\": \"b\"}\nworld\n", map[string]any{"a": "b"}, ""},
		"without end":   {"###Phase-output###:{\"key\":\"a\",\"value\":\"b\"}", map[string]any{"a": "b"}, ""},
		"CRLF":          {"###Phase-output###: {\"key\":\"a\",\"value\":\"b\"}\r\n", map[string]any{"a": "b"}, ""},
		"last counts":   {"###Phase-output###: {\"key\":\"a\",\"value\":\"b\"}\n###Phase-output###: {\"key\":\"a\",\"value\":\"c\"}", map[string]any{"a": "c"}, ""},
		"nothing there": {"###Phase-output###:  \n", map[string]any{}, ""},
		"whole number":  {"###Phase-output###: {\"key\":\"n\",\"value\":1000000}", map[string]any{"n": int64(1000000)}, ""},
		"long log":      {strings.Repeat("x", 3*outputLimit) + "\n###Phase-output###: {\"key\":\"a\",\"value\":\"b\"}", map[string]any{"a": "b"}, ""},
		"long output":   {"###Phase-output###: {\"key\":\"a\",\"value\":\"" + strings.Repeat("x", outputLimit) + "\"}", nil, "line 1: the output is longer than 1048576 bytes"},
		"no JSON":       {"a\n###Phase-output###: hush", nil, `line 2: what follows ###Phase-output###: is no JSON of the form {"key": "…", "value": "…"}`},
		"no key":        {"###Phase-output###: {\"value\":\"hush\"}", nil, "line 1: the output after ###Phase-output###: has no key"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseOutputs(strings.NewReader(test.printed))
			if test.err != "" {
				require.EqualError(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}
