package function

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	kjson "sigs.k8s.io/json"
)

// OutputMark stands before an output in what a command prints; the same as
// Kanister's, whose `kando output` prints it.
const OutputMark = "###Phase-output###:"

// longestLine is how much of a line is kept, in bytes, and how long all outputs
// of a phase may be.
const longestLine = 1 << 20

// ParseOutputs finds the outputs of a phase in what its command printed: what
// follows the mark in a line, as JSON with a key and a value. The last one of
// a key counts. An error shows nothing of what was printed.
func ParseOutputs(printed []byte) (map[string]any, error) {
	return outputsIn(bytes.NewReader(printed))
}

func outputsIn(printed io.Reader) (map[string]any, error) {
	outputs := map[string]any{}
	reader, length := bufio.NewReader(printed), 0
	for number, more := 1, true; more; number++ {
		line, tooLong, err := nextLine(reader)
		more = err == nil
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if _, output, marked := bytes.Cut(line, []byte(OutputMark)); marked {
			if tooLong {
				return nil, fmt.Errorf("line %d: the output is longer than %d bytes", number, longestLine)
			}
			if length += len(output); length > longestLine {
				return nil, fmt.Errorf("line %d: the outputs are longer than %d bytes", number, longestLine)
			}
			if wrong := addOutput(outputs, bytes.TrimSpace(output)); wrong != "" {
				return nil, fmt.Errorf("line %d: %s", number, wrong)
			}
		}
	}
	return outputs, nil
}

// nextLine reads a line and keeps the beginning of one that is too long.
func nextLine(reader *bufio.Reader) (line []byte, tooLong bool, err error) {
	for {
		part, err := reader.ReadSlice('\n')
		if room := longestLine - len(line); len(part) > room {
			part, tooLong = part[:room], true
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, tooLong, err
		}
	}
}

func addOutput(outputs map[string]any, text []byte) (wrong string) {
	if len(text) == 0 {
		return ""
	}
	var output struct {
		Key   string `json:"key"`
		Value any    `json:"value"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &output); err != nil {
		return fmt.Sprintf(`what follows %s is no JSON of the form {"key": "…", "value": "…"}`, OutputMark)
	}
	if output.Key == "" {
		return fmt.Sprintf("the output after %s has no key", OutputMark)
	}
	outputs[output.Key] = output.Value
	return ""
}
