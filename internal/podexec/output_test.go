package podexec

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOutputKeepsItsEndAndItsOutputs(t *testing.T) {
	o := NewOutput(func(text string, _ bool) string { return text[max(0, len(text)-TailLimit):] })
	mark := OutputMark + ` {"key": "a", "value": "b"}`
	for _, part := range []string{"one\ntw", "o\n" + mark[:5], mark[5:] + "\n", strings.Repeat("x", KeepLimit), "\nlast" + EndMark[:3], EndMark[3:] + "\n"} {
		n, err := o.Write([]byte(part))
		require.NoError(t, err)
		require.Len(t, part, n)
	}
	o.WaitEnd()
	outputs, err := o.Outputs()
	require.NoError(t, err)
	require.Equal(t, map[string]any{"a": "b"}, outputs)
	require.Equal(t, strings.Repeat("x", TailLimit-len("\nlast\n"))+"\nlast\n", o.String())
	text, cut := o.Tail()
	require.True(t, cut)
	require.LessOrEqual(t, len(text), KeepLimit)
}
