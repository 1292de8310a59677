package podexec

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	kjson "sigs.k8s.io/json"
)

// OutputMark precedes an output in the text that a command prints, as by `kando output`.
const OutputMark = "###Phase-output###:"

// ParseOutputs returns the outputs of a phase from the text that its command printed. After
// the mark, a line has a JSON object with key and value. The last value of a key counts.
// Errors contain no part of the text.
func ParseOutputs(printed io.Reader) (map[string]any, error) {
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
				return nil, fmt.Errorf("line %d: the output is longer than %d bytes", number, outputLimit)
			}
			if length += len(output); length > outputLimit {
				return nil, fmt.Errorf("line %d: the outputs are longer than %d bytes", number, outputLimit)
			}
			if wrong := addOutput(outputs, bytes.TrimSpace(output)); wrong != "" {
				return nil, fmt.Errorf("line %d: %s", number, wrong)
			}
		}
	}
	return outputs, nil
}

// nextLine reads a line and truncates a long one.
func nextLine(reader *bufio.Reader) (line []byte, tooLong bool, err error) {
	for {
		part, err := reader.ReadSlice('\n')
		if room := outputLimit - len(line); len(part) > room {
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
