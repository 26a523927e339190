# Says once a minute how full the disk is, as JSON: its `level` is the line's level in the log.
while :; do
    used=$(df -P / | awk 'NR == 2 { print $5 + 0 }')
    [ "$used" -lt 90 ] && level=info || level=warning
    echo "{\"level\": \"$level\", \"text\": \"/ is $used% full\"}"
    sleep 60
done
