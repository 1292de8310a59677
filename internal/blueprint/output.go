package blueprint

import (
	"bytes"
	"fmt"

	kjson "sigs.k8s.io/json"
)

// outputMark stands before an output in what a command prints; the same as
// Kanister's, whose `kando output` prints it.
const outputMark = "###Phase-output###:"

// ParseOutputs finds the outputs of a phase in what its command printed: what
// follows the mark in a line, as JSON with a key and a value. The last one of
// a key counts.
func ParseOutputs(printed []byte) (map[string]any, error) {
	outputs := map[string]any{}
	number := 0
	for line := range bytes.Lines(printed) {
		number++
		_, after, marked := bytes.Cut(line, []byte(outputMark))
		after = bytes.TrimSpace(after)
		if !marked || len(after) == 0 {
			continue
		}
		var output struct {
			Key   string `json:"key"`
			Value any    `json:"value"`
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(after, &output); err != nil {
			return nil, fmt.Errorf("line %d of what the phase printed: after %s there must be {\"key\": …, \"value\": …}: %w", number, outputMark, err)
		}
		if output.Key == "" {
			return nil, fmt.Errorf("line %d of what the phase printed: the output after %s has no key", number, outputMark)
		}
		outputs[output.Key] = output.Value
	}
	return outputs, nil
}
